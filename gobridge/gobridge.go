// Package gobridge is what Python may call. gopy binds it, so it speaks integers (addresses of C structures, handles),
// strings and errors only, and does nothing itself: every function is one of package capi. An error's text begins with
// its kind and a colon, which toedit._native turns into the exception.
package gobridge

import "toedit/capi"

// OpenPrior opens a prior folder, to be read in a way (JSON).
func OpenPrior(dir, reading string) (uint64, error) { return capi.OpenPrior(dir, reading) }

// DescribePrior returns what a prior is, as JSON.
func DescribePrior(prior uint64) (string, error) { return capi.DescribePrior(prior) }

// OpenScorer loads a prior's model with the ONNX Runtime library at a path.
func OpenScorer(prior uint64, library, options string) (uint64, error) {
	return capi.OpenScorer(prior, library, options)
}

// ScorerStats is what a scorer has done so far, as JSON.
func ScorerStats(scorer uint64) (string, error) { return capi.ScorerStats(scorer) }

// StartScore begins to score a batch and returns a job.
func StartScore(scorer, batch, schema uint64, options string) (uint64, error) {
	return capi.StartScore(scorer, batch, schema, options)
}

// WaitScore waits at most some milliseconds; true once the job is done.
func WaitScore(job uint64, milliseconds int) (bool, error) { return capi.WaitScore(job, milliseconds) }

// ScoredTokens is how many tokens a job has scored so far.
func ScoredTokens(job uint64) (int64, error) { return capi.ScoredTokens(job) }

// TakeScore fills out with a job's scores and ends it.
func TakeScore(job, out, outSchema uint64) error { return capi.TakeScore(job, out, outSchema) }

// CancelScore ends a job; nothing of it is in use afterwards.
func CancelScore(job uint64) error { return capi.CancelScore(job) }

// ReadRows fills out with the real tokens of a batch's rows, their hashes, and the windows that the prior reads them in.
func ReadRows(prior, batch, schema uint64, options string, out, outSchema uint64) error {
	return capi.ReadRows(prior, batch, schema, options, out, outSchema)
}

// HashRows fills words with the halves of the document hashes and the lengths of a batch's n rows.
func HashRows(prior, batch, schema, words uint64, n int) error {
	return capi.HashRows(prior, batch, schema, words, n)
}

// CheckPolicy says what is wrong with a policy (JSON).
func CheckPolicy(policy string) error { return capi.CheckPolicy(policy) }

// PresetPolicy returns the policy of that name, as JSON.
func PresetPolicy(name string) (string, error) { return capi.PresetPolicy(name) }

// OpenEditor compiles a policy (JSON) for a prior.
func OpenEditor(prior uint64, policy string) (uint64, error) { return capi.OpenEditor(prior, policy) }

// Edit edits a batch that carries its scores.
func Edit(editor, seed uint64, epoch uint32, generation uint16, batch, schema, out, outSchema, log, logSchema, counts uint64) error {
	return capi.Edit(editor, seed, epoch, generation, capi.EditArgs{
		Batch: batch, Schema: schema, Out: out, OutSchema: outSchema, Log: log, LogSchema: logSchema, Counts: counts,
	})
}

// Statistics counts what editing a batch meets and does: documents is filled with a row a document, the totals are JSON.
func Statistics(editor, seed uint64, epoch uint32, batch, schema, documents, documentsSchema uint64) (string, error) {
	return capi.Statistics(editor, seed, epoch, batch, schema, documents, documentsSchema)
}

// OpenTokens opens a tokenizer.json, given as its text.
func OpenTokens(tokenizerJSON string) (uint64, error) { return capi.OpenTokens(tokenizerJSON) }

// EditText makes edits of tokens in the texts that the tokens were made of.
func EditText(tokens, batch, schema, edits, editsSchema, out, outSchema, other, otherSchema uint64) error {
	return capi.EditText(tokens, capi.TextArgs{
		Batch: batch, Schema: schema, Edits: edits, EditsSchema: editsSchema, Out: out, OutSchema: outSchema, Other: other, OtherSchema: otherSchema,
	})
}

// Stretches finds what must be tokenised anew after edits of the text.
func Stretches(tokens, batch, schema, edits, editsSchema, out, outSchema, other, otherSchema uint64) error {
	return capi.Stretches(tokens, capi.TextArgs{
		Batch: batch, Schema: schema, Edits: edits, EditsSchema: editsSchema, Out: out, OutSchema: outSchema, Other: other, OtherSchema: otherSchema,
	})
}

// CompleteLog fills out with the whole log of a generation, from what Edit logged and the batch that it was called with.
func CompleteLog(prior uint64, generation int, batch, schema, log, logSchema, out, outSchema uint64) error {
	return capi.CompleteLog(prior, generation, logArgs(batch, schema, log, logSchema, out, outSchema))
}

// ApplyLog makes the edits of a log in a batch that was not edited.
func ApplyLog(labels string, batch, schema, log, logSchema, out, outSchema uint64) error {
	return capi.ApplyLog(labels, logArgs(batch, schema, log, logSchema, out, outSchema))
}

// RevertLog takes the edits of a log back in a batch that they were made in.
func RevertLog(batch, schema, log, logSchema, out, outSchema uint64) error {
	return capi.RevertLog(logArgs(batch, schema, log, logSchema, out, outSchema))
}

func logArgs(batch, schema, log, logSchema, out, outSchema uint64) capi.LogArgs {
	return capi.LogArgs{Batch: batch, Schema: schema, Log: log, LogSchema: logSchema, Out: out, OutSchema: outSchema}
}

// ReleaseArrow releases an array and its schema that Edit or TakeScore filled and nobody imported.
func ReleaseArrow(array, schema uint64) error { return capi.ReleaseArrow(array, schema) }

// AddCounters adds values to counters that several processes share.
func AddCounters(counters, values uint64, n int) error { return capi.AddCounters(counters, values, n) }

// Close closes a prior, scorer, editor or tokenizer.
func Close(handle uint64) error { return capi.Close(handle) }

// AllocatedBytes is the memory of exported arrays that were not released.
func AllocatedBytes() int64 { return capi.GetUsage().AllocatedBytes }

// Exports is the number of exported Arrow structures that were not released.
func Exports() int64 { return capi.GetUsage().Exports }

// Handles is the number of open handles.
func Handles() int64 { return capi.GetUsage().Handles }

// PanicForTest panics on purpose.
func PanicForTest(confirm string) error { return capi.PanicForTest(confirm) }
