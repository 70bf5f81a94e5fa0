package editor

// Edit is one token to replace, to take out, or to take no loss of.
type Edit struct {
	Pos    int32   // index into the document's ids
	Old    uint32  // what is there
	New    uint32  // never equal to Old where Action is Resample; else Old
	LogP   float32 // ln P of the old token
	Band   uint8   // index in the policy's bands
	Action Action
}

// Apply writes a plan's edits into ids, in place; tokens that are to be dropped stay. The ids must be the
// document's, in a type that holds every id of the vocabulary.
func Apply[T ~int32 | ~int64 | ~uint16 | ~uint32](ids []T, edits []Edit) {
	for i := range edits {
		ids[edits[i].Pos] = T(edits[i].New) // the old id where it is dropped or masked
	}
}
