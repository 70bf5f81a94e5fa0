/* toedit: token-level editing (ToEdit, arXiv 2412.14689) through the Arrow C data interface.
 *
 * Every function returns TOEDIT_OK or another status. On another status *error, where error is not NULL, is set to a
 * message that the caller frees with toedit_free; on TOEDIT_OK it is set to NULL. All other out-parameters are zeroed
 * before anything else is done.
 *
 * Arrow structures passed in are consumed: whatever the status, they have been released when the function returns.
 * Arrow structures passed out are filled on TOEDIT_OK only; the caller releases them. That never enters this
 * library's Go runtime, so it may be done in a forked child too.
 *
 * Handles are valid in the process that made them. After fork, a child must load its own copy of the library.
 * All functions may be called from any thread. */
#ifndef TOEDIT_H
#define TOEDIT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The Arrow C data interface, as its specification gives it. */
#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

#define ARROW_FLAG_DICTIONARY_ORDERED 1
#define ARROW_FLAG_NULLABLE 2
#define ARROW_FLAG_MAP_KEYS_SORTED 4

struct ArrowSchema {
  const char* format;
  const char* name;
  const char* metadata;
  int64_t flags;
  int64_t n_children;
  struct ArrowSchema** children;
  struct ArrowSchema* dictionary;
  void (*release)(struct ArrowSchema*);
  void* private_data;
};

struct ArrowArray {
  int64_t length;
  int64_t null_count;
  int64_t offset;
  int64_t n_buffers;
  int64_t n_children;
  const void** buffers;
  struct ArrowArray** children;
  struct ArrowArray* dictionary;
  void (*release)(struct ArrowArray*);
  void* private_data;
};

#endif /* ARROW_C_DATA_INTERFACE */

enum {
  TOEDIT_OK = 0,
  TOEDIT_INPUT = 1,     /* an argument or a row of input is wrong */
  TOEDIT_SCORES = 2,    /* the scores do not belong to these ids, this prior or this policy */
  TOEDIT_PRIOR = 3,     /* the prior folder is missing, damaged or of another kind */
  TOEDIT_RUNTIME = 4,   /* ONNX Runtime is missing, too old or failed */
  TOEDIT_CLOSED = 5,    /* the handle is unknown, closed, or another process's */
  TOEDIT_CANCELLED = 6, /* the job was cancelled */
  TOEDIT_INTERNAL = 7   /* a defect in toedit: nothing more is done in this process */
};

typedef const char toedit_cchar; /* cgo cannot say const */

/* Totals of one call of toedit_edit. expected_changes is the sum over candidates of one minus the probability that the
 * draw keeps the token. */
struct toedit_counts {
  int64_t rows;
  int64_t empty_rows;       /* rows without tokens, passed through */
  int64_t overlong_rows;    /* rows whose end lies beyond the prior's context and stays as it is */
  int64_t tokens;           /* padding left out */
  int64_t unscored;
  int64_t protected_tokens; /* in a band, but protected */
  int64_t candidates;       /* in a band, and not protected */
  int64_t unselected;       /* candidates that max_edit_rate or edit_probability left alone */
  int64_t truncated;        /* candidates that stay because too little is stored to find the top_p of them */
  int64_t changes;          /* candidates whose id differs after the draw */
  int64_t dropped;          /* candidates taken out */
  int64_t masked;           /* candidates whose label is to be -100 */
  double expected_changes;
};

/* What the library holds. All three are back at their old values when everything was released and closed. */
struct toedit_usage {
  int64_t allocated_bytes; /* memory of exported arrays */
  int64_t exports;         /* exported Arrow structures, children included, that were not released */
  int64_t handles;
};

/* Frees a message. NULL is fine. */
void toedit_free(char* message);

/* Opens a prior folder (settings and tokenizer; the model is opened by toedit_scorer_open). reading says how documents
 * longer than the context are read, as JSON: {"windows": "rolling" (or "lm-eval", "off"), "min_context": 256,
 * "cross_documents": false}; NULL is the default. It is part of the prior's fingerprint. */
int32_t toedit_prior_open(toedit_cchar* folder, toedit_cchar* reading, uint64_t* prior, char** error);

/* Opens the prior's model with ONNX Runtime (library: path of libonnxruntime.so). options is JSON: {"threads": 1 (runs
 * that are computed at a time), "device": "cpu" (or "cuda", "cuda:N"), "memory_limit": 0 (bytes)}; threads must be there. */
int32_t toedit_scorer_open(uint64_t prior, toedit_cchar* library, toedit_cchar* options, uint64_t* scorer,
                           char** error);

/* Scores rows: batch is a struct array with the column input_ids (list, large_list or fixed_size_list of int32, int64,
 * uint16 or uint32) and optionally attention_mask (0 = padding), and for rows that hold several documents document_ids
 * (changes where one begins), position_ids (restarts there) or seq_lengths. options is JSON: {"k": 8, "keep": [[0.9, 1]],
 * "split_after": 0 (optional: the id that ends a document)}.
 * out: a struct array with the fields logp, topk_pos, topk_ids, topk_logp, k, ids_hash, prior. Blocks. */
int32_t toedit_score(uint64_t scorer, toedit_cchar* options, struct ArrowArray* batch, struct ArrowSchema* schema,
                     struct ArrowArray* out, struct ArrowSchema* out_schema, char** error);

/* Compiles a policy for a prior. policy is a JSON object with fields of the policy, {"threshold": 0.9, "top_p": 0.95} say;
 * what is missing is as in the paper, or as in the policy that "preset" names. */
int32_t toedit_editor_open(uint64_t prior, toedit_cchar* policy, uint64_t* editor, char** error);

/* Edits rows. generation is 0, and 1, 2, ... where rows that were edited are scored and edited once more: each has draws
 * of its own. batch: a struct array with the columns input_ids, scores (as toedit_score makes them) and optionally
 * attention_mask, labels (-100: not edited), protected_mask, special_tokens_mask (1: not edited), assistant_masks (1: the
 * assistant's words, which the policy may protect or edit alone), protected_ranges (characters that are not edited: start and
 * end of each range, ascending, as a list of integers) with offset_mapping (start and end of each token), key (utf8 or int64)
 * and offset (int64). out: a struct array with input_ids and, if given, labels, in the types that came in; where the policy
 * drops tokens, also kept, the indexes of each row's values that are left. Labels become -100 where the policy masks loss;
 * without labels these tokens stand in the log alone. log: a struct array with a row for each edit: row, position, old, new
 * (-1 where the token is dropped), logp, band (index in the policy's bands). */
int32_t toedit_edit(uint64_t editor, uint64_t seed, uint32_t epoch, uint16_t generation,
                    struct ArrowArray* batch, struct ArrowSchema* schema, struct ArrowArray* out,
                    struct ArrowSchema* out_schema, struct ArrowArray* log, struct ArrowSchema* log_schema,
                    struct toedit_counts* counts, char** error);

/* Closes a prior, scorer or editor. A scorer is closed when its jobs have ended. */
int32_t toedit_close(uint64_t handle, char** error);

/* What the library holds now. */
int32_t toedit_get_usage(struct toedit_usage* usage, char** error);

#ifdef __cplusplus
}
#endif

#endif /* TOEDIT_H */
