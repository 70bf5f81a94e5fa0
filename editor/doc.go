// Package editor is the editing core of toedit: token-level editing (ToEdit,
// arXiv 2412.14689, Algorithm 1) from stored scores.
//
// A prior language model has scored a document once: ln P(x_i | x_<i) for
// every token and, where that probability is high, the k most probable tokens
// at that position. From these, a [Policy] and an [Epoch], an [Editor] plans
// which tokens are replaced by a draw from the prior's own distribution, and
// [Apply] writes them. All other tokens stay and the length never changes.
//
// The package is pure Go. It knows nothing of C, Arrow or Python.
//
// # Contract
//
// A plan depends on the document's ids, its key and offset, its scores, the
// policy and the epoch, and on nothing else: no state is kept between
// documents, so any batch size, order, split or worker gives the same edits.
//
//   - Document hash: XXH3-128 over the ids as little-endian uint32, unedited
//     and without padding. Document key: the same hash over a key value, or
//     the document hash.
//   - Candidate: a scored token with float64(logp) >= ln(threshold) that is
//     not protected. Protected are special and added tokens (unless the policy
//     turns that off), ids past the tokenizer's vocabulary, the policy's
//     protected ids and the positions the caller marks.
//   - Weights: w_j = exp(a_j / temperature) over the first k stored log
//     probabilities a_j, 0 where the token may not be drawn. If the largest
//     exponent of those that may is below -600, exp((a_j - a_max) / temperature)
//     instead. S = w_0 + w_1 + ..., in that order.
//   - Uniform: u = (first word >> 11) * 2^-53 of the Philox4x64-10 block with
//     key (seed, epoch<<32 + generation<<16 + purpose) and counter (0, index +
//     offset, document key low, document key high). Purpose 0 draws tokens.
//   - Draw: the first j with u*S < w_0 + ... + w_j, or, should rounding leave
//     none, the last j with w_j > 0. If S is 0 the token is kept.
//   - Change: a candidate whose drawn id differs from its own. Expected
//     changes: the sum of 1 - w_original/S over the candidates, in order.
//
// All arithmetic is float64 in the order written, with an exponential of its
// own (see expNeg), and nothing is fused: every architecture gives the same
// bits.
package editor
