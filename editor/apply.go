package editor

// Edit is one token to replace.
type Edit struct {
	Pos      int32   // index into the document's ids
	Old, New uint32  // never equal
	LogP     float32 // ln P of the old token
}

// Apply writes a plan's edits into ids, in place. The ids must be the
// document's, in a type that holds every id of the vocabulary.
func Apply[T ~int32 | ~int64 | ~uint16 | ~uint32](ids []T, edits []Edit) {
	for i := range edits {
		ids[edits[i].Pos] = T(edits[i].New)
	}
}
