/* A C program that knows nothing of toedit but its header. It is built with the address sanitizer, so whatever the library
 * reads too far, frees twice or keeps is found.
 *
 * Arguments: the prior's folder, its fingerprint, the hash of IDS (its low half, decimal), and the path of libonnxruntime or
 * nothing. */
#define _GNU_SOURCE /* locks for which a writer need not wait until there are no readers left */
#include "toedit.h"

#include <pthread.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#else
static void __lsan_disable(void) {}
static void __lsan_enable(void) {}
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                       \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #condition);    \
      exit(1);                                                                                 \
    }                                                                                          \
  } while (0)

/* Expects a status and, unless it is TOEDIT_OK, a message with some words in it. */
#define EXPECT(status, words, call)                                                            \
  do {                                                                                         \
    char* error = (char*)1;                                                                    \
    int32_t got = (call);                                                                      \
    if (got != (status)) {                                                                     \
      fprintf(stderr, "%s:%d: status %d: %s\n", __FILE__, __LINE__, got, got ? error : "");    \
      exit(1);                                                                                 \
    }                                                                                          \
    CHECK((error == NULL) == (got == TOEDIT_OK));                                              \
    if (error != NULL && strstr(error, words) == NULL) {                                       \
      fprintf(stderr, "%s:%d: \"%s\" is not in: %s\n", __FILE__, __LINE__, words, error);      \
      exit(1);                                                                                 \
    }                                                                                          \
    toedit_free(error);                                                                        \
  } while (0)

static const char* folder;
static const char* fingerprint;
static uint64_t ids_hash;
static const char* library;

/* ---------------------------------------------------------------------------------------------------------------------
 * A producer of Arrow structures. Each node owns what hangs from it, in memory of exactly the size that the format asks
 * for. */

static int live; /* structures that were not released */

static void release_array(struct ArrowArray* array) {
  struct ArrowArray** children = array->private_data; /* the fields may have been spoilt */
  const void** buffers = (const void**)(children + 8);
  for (int i = 0; i < 8 && children[i] != NULL; i++) {
    if (children[i]->release != NULL) children[i]->release(children[i]);
    free(children[i]);
  }
  for (int i = 0; i < 3; i++) free((void*)buffers[i]);
  free(children);
  array->release = NULL;
  __atomic_fetch_sub(&live, 1, __ATOMIC_SEQ_CST);
}

static void release_schema(struct ArrowSchema* schema) {
  struct ArrowSchema** children = schema->private_data;
  for (int i = 0; i < 8 && children[i] != NULL; i++) {
    if (children[i]->release != NULL) children[i]->release(children[i]);
    free(children[i]);
  }
  free(children);
  schema->release = NULL;
  __atomic_fetch_sub(&live, 1, __ATOMIC_SEQ_CST);
}

static void* copy(const void* bytes, size_t size) {
  if (bytes == NULL) return NULL;
  void* out = malloc(size);
  memcpy(out, bytes, size);
  return out;
}

struct pair {
  struct ArrowArray array;
  struct ArrowSchema schema;
};

/* A node of n elements with up to two buffers behind the validity bitmap, and room for eight children. */
static struct pair node(const char* format, const char* name, int64_t n, int64_t n_buffers, const void* second,
                        size_t second_size, const void* third, size_t third_size) {
  struct pair p;
  memset(&p, 0, sizeof p);
  void** room = calloc(8 + 3, sizeof *room); /* children and buffers */
  p.array.private_data = room;
  p.array.children = (struct ArrowArray**)room;
  p.array.buffers = (const void**)(room + 8);
  p.array.buffers[1] = copy(second, second_size);
  p.array.buffers[2] = copy(third, third_size);
  p.array.length = n;
  p.array.n_buffers = n_buffers;
  p.array.release = release_array;
  p.schema.format = format;
  p.schema.name = name;
  p.schema.flags = ARROW_FLAG_NULLABLE;
  p.schema.private_data = calloc(8, sizeof(void*));
  p.schema.children = p.schema.private_data;
  p.schema.release = release_schema;
  __atomic_fetch_add(&live, 2, __ATOMIC_SEQ_CST);
  return p;
}

static void adopt(struct pair* parent, struct pair child) {
  parent->array.children[parent->array.n_children] = copy(&child.array, sizeof child.array);
  parent->schema.children[parent->schema.n_children] = copy(&child.schema, sizeof child.schema);
  parent->array.n_children++;
  parent->schema.n_children++;
}

static struct pair values(const char* format, const char* name, int64_t n, const void* data, size_t size) {
  return node(format, name, n, 2, data, (size_t)n * size, NULL, 0);
}

/* A list of one row. */
static struct pair one_list(const char* name, const char* element, int32_t n, const void* data, size_t size) {
  int32_t offsets[2] = {0, n};
  struct pair list = node("+l", name, 1, 2, offsets, sizeof offsets, NULL, 0);
  adopt(&list, values(element, "item", n, data, size));
  return list;
}

enum { N = 5, K = 2 };
static const int32_t IDS[N] = {17, 18, 19, 20, 21};

/* Scores of IDS: positions 1 and 3 have P of about 0.99, with 99 beside them. */
static struct pair stored_scores(const char* prior) {
  float logp[N] = {-5, -0.01f, -3, -0.0078125f, -2};
  int32_t pos[] = {1, 3}, ids[] = {18, 99, 20, 99}, k = K;
  float top[] = {-0.0078125f, -6, -0.0078125f, -6};
  int32_t offsets[2] = {0, (int32_t)strlen(prior)};
  struct pair s = node("+s", "scores", 1, 1, NULL, 0, NULL, 0);
  adopt(&s, one_list("logp", "f", N, logp, sizeof *logp));
  adopt(&s, one_list("topk_pos", "i", 2, pos, sizeof *pos));
  adopt(&s, one_list("topk_ids", "i", 4, ids, sizeof *ids));
  adopt(&s, one_list("topk_logp", "f", 4, top, sizeof *top));
  adopt(&s, values("i", "k", 1, &k, sizeof k));
  adopt(&s, values("L", "ids_hash", 1, &ids_hash, sizeof ids_hash));
  adopt(&s, node("u", "prior", 1, 3, offsets, sizeof offsets, prior, strlen(prior)));
  return s;
}

static struct pair batch_of(struct pair scores) {
  struct pair batch = node("+s", "", 1, 1, NULL, 0, NULL, 0);
  adopt(&batch, one_list("input_ids", "i", N, IDS, sizeof *IDS));
  adopt(&batch, scores);
  return batch;
}

/* ---------------------------------------------------------------------------------------------------------------------
 * Calls. */

/* All out-parameters of an edit, full of garbage. */
struct out {
  struct ArrowArray array, log;
  struct ArrowSchema schema, log_schema;
  struct toedit_counts counts;
};

static int32_t edit(uint64_t editor, struct pair* batch, struct out* out, char** error) {
  memset(out, 0xFF, sizeof *out);
  int32_t status = toedit_edit(editor, 1, 2, 0, &batch->array, &batch->schema, &out->array, &out->schema, &out->log,
                               &out->log_schema, &out->counts, error);
  CHECK(batch->array.release == NULL && batch->schema.release == NULL);
  if (status != TOEDIT_OK) {
    static const struct out nothing;
    CHECK(memcmp(out, &nothing, sizeof nothing) == 0);
  }
  return status;
}

static void release_out(struct out* out) {
  out->array.release(&out->array);
  out->schema.release(&out->schema);
  out->log.release(&out->log);
  out->log_schema.release(&out->log_schema);
  CHECK(out->array.release == NULL && out->schema.release == NULL);
}

static struct toedit_usage usage(void) {
  struct toedit_usage u;
  memset(&u, 0xFF, sizeof u);
  EXPECT(TOEDIT_OK, "", toedit_get_usage(&u, &error));
  return u;
}

static void expect_usage(int64_t exports, int64_t handles) {
  struct toedit_usage u = usage();
  CHECK((u.allocated_bytes > 0) == (exports > 0));
  CHECK(u.exports == exports);
  CHECK(u.handles == handles);
}

static const char POLICY[] =
    "{\"threshold\": 0.9, \"k\": 2, \"temperature\": 1, \"exclude_original\": true, \"protect_special\": true, "
    "\"protected_ids\": []}";

static uint64_t open_prior(void) {
  uint64_t prior = 0;
  EXPECT(TOEDIT_OK, "", toedit_prior_open(folder, NULL, &prior, &error));
  CHECK(prior != 0);
  return prior;
}

static uint64_t open_editor(uint64_t prior) {
  uint64_t editor = 0;
  EXPECT(TOEDIT_OK, "", toedit_editor_open(prior, POLICY, &editor, &error));
  return editor;
}

static void close_handle(uint64_t handle) { EXPECT(TOEDIT_OK, "", toedit_close(handle, &error)); }

/* ---------------------------------------------------------------------------------------------------------------------
 * Tests. */

static void check_edited(const struct out* out) {
  CHECK(strcmp(out->schema.format, "+s") == 0 && out->schema.n_children == 1 && out->array.n_children == 1);
  const struct ArrowSchema* column = out->schema.children[0];
  CHECK(strcmp(column->name, "input_ids") == 0 && strcmp(column->format, "+l") == 0);
  CHECK(strcmp(column->children[0]->name, "item") == 0 && strcmp(column->children[0]->format, "i") == 0);
  const struct ArrowArray* list = out->array.children[0];
  CHECK(out->array.length == 1 && list->length == 1 && list->n_buffers == 2 && list->offset == 0);
  const int32_t* offsets = list->buffers[1];
  CHECK(offsets[0] == 0 && offsets[1] == N);
  CHECK(list->children[0]->length == N && list->children[0]->null_count == 0);
  CHECK((uintptr_t)list->children[0]->buffers[1] % 64 == 0);
  static const int32_t want[N] = {17, 99, 19, 99, 21};
  CHECK(memcmp(list->children[0]->buffers[1], want, sizeof want) == 0);

  CHECK(out->log.length == 2 && out->log.n_children == 6);
  static const char* names[] = {"row", "position", "old", "new", "logp", "band"};
  static const int64_t log[][2] = {{0, 0}, {1, 3}, {18, 20}, {99, 99}};
  for (int i = 0; i < 6; i++) {
    CHECK(strcmp(out->log_schema.children[i]->name, names[i]) == 0);
    CHECK(strcmp(out->log_schema.children[i]->format, i < 4 ? "l" : i < 5 ? "f" : "i") == 0);
    CHECK(out->log.children[i]->length == 2);
    if (i < 4) CHECK(memcmp(out->log.children[i]->buffers[1], log[i], sizeof log[i]) == 0);
  }
  CHECK(((const float*)out->log.children[4]->buffers[1])[1] == -0.0078125f);
  CHECK(((const int32_t*)out->log.children[5]->buffers[1])[1] == 0);

  CHECK(out->counts.rows == 1 && out->counts.tokens == N && out->counts.candidates == 2 && out->counts.changes == 2);
  CHECK(out->counts.expected_changes == 2 && out->counts.empty_rows == 0 && out->counts.unscored == 0);
}

static void test_edit(void) {
  uint64_t prior = open_prior(), editor = open_editor(prior);
  expect_usage(0, 2);
  struct pair batch = batch_of(stored_scores(fingerprint));
  struct out out;
  EXPECT(TOEDIT_OK, "", edit(editor, &batch, &out, &error));
  CHECK(live == 0);
  check_edited(&out);
  expect_usage(20, 2); /* 3 arrays of the batch, 7 of the log, and their schemas */
  release_out(&out);
  expect_usage(0, 2);

  batch = batch_of(stored_scores(fingerprint));
  CHECK(edit(editor, &batch, &out, NULL) == TOEDIT_OK);
  close_handle(prior);
  close_handle(editor);
  expect_usage(20, 0); /* exports need no handle */

  /* A column is moved out, and outlives its batch. */
  struct ArrowArray moved = *out.array.children[0];
  out.array.children[0]->release = NULL;
  release_out(&out);
  CHECK(((const int32_t*)moved.children[0]->buffers[1])[1] == 99);
  moved.release(&moved);
  expect_usage(0, 0);
}

static void test_errors(void) {
  uint64_t prior = open_prior(), editor = open_editor(prior), handle = 7;
  toedit_free(NULL);

  EXPECT(TOEDIT_PRIOR, "empty", toedit_prior_open(NULL, NULL, &handle, &error));
  CHECK(handle == 0);
  handle = 7;
  EXPECT(TOEDIT_PRIOR, "prior.json", toedit_prior_open("/nonexistent", NULL, &handle, &error));
  CHECK(handle == 0);
  EXPECT(TOEDIT_INPUT, "null", toedit_prior_open(folder, NULL, NULL, &error));
  CHECK(toedit_prior_open(NULL, NULL, NULL, NULL) == TOEDIT_PRIOR);

  handle = 7;
  EXPECT(TOEDIT_INPUT, "threshold", toedit_editor_open(prior, "{\"threshold\": 2}", &handle, &error));
  CHECK(handle == 0);
  EXPECT(TOEDIT_INPUT, "JSON", toedit_editor_open(prior, NULL, &handle, &error));
  EXPECT(TOEDIT_CLOSED, "an editor, not a prior", toedit_editor_open(editor, POLICY, &handle, &error));
  EXPECT(TOEDIT_CLOSED, "never opened", toedit_editor_open(0, POLICY, &handle, &error));
  EXPECT(TOEDIT_INPUT, "null", toedit_editor_open(prior, POLICY, NULL, &error));
  EXPECT(TOEDIT_INPUT, "threads", toedit_scorer_open(prior, "/nonexistent", "{\"threads\": 0}", &handle, &error));
  EXPECT(TOEDIT_RUNTIME, "empty", toedit_scorer_open(prior, NULL, "{\"threads\": 1}", &handle, &error));
  EXPECT(TOEDIT_RUNTIME, "/nonexistent", toedit_scorer_open(prior, "/nonexistent", "{\"threads\": 1}", &handle, &error));
  EXPECT(TOEDIT_CLOSED, "closed", toedit_close(1, &error));
  EXPECT(TOEDIT_CLOSED, "belongs to process", toedit_close(prior ^ (1ull << 40), &error));
  EXPECT(TOEDIT_INPUT, "null", toedit_get_usage(NULL, &error));
  CHECK(toedit_get_usage(NULL, NULL) == TOEDIT_INPUT);

  struct out out;
  struct pair batch = batch_of(stored_scores(fingerprint));
  EXPECT(TOEDIT_CLOSED, "a prior, not an editor", edit(prior, &batch, &out, &error));
  batch = batch_of(stored_scores("00000000000000000000000000000000"));
  EXPECT(TOEDIT_SCORES, "row 0", edit(editor, &batch, &out, &error));
  batch = batch_of(stored_scores(fingerprint));
  ((int32_t*)batch.array.children[0]->children[0]->buffers[1])[2] = -1;
  EXPECT(TOEDIT_INPUT, "input_ids[2] is -1", edit(editor, &batch, &out, &error));
  batch = batch_of(stored_scores(fingerprint));
  ((int32_t*)batch.array.children[0]->children[0]->buffers[1])[2]++;
  EXPECT(TOEDIT_SCORES, "ids_hash", edit(editor, &batch, &out, &error));
  batch = batch_of(stored_scores(fingerprint));
  CHECK(edit(0, &batch, &out, NULL) == TOEDIT_CLOSED);
  CHECK(live == 0);

  /* Null pointers in every place. */
  for (int missing = 0; missing < 7; missing++) {
    batch = batch_of(stored_scores(fingerprint));
    memset(&out, 0xFF, sizeof out);
    EXPECT(TOEDIT_INPUT, "null",
           toedit_edit(editor, 0, 0, 0, missing == 0 ? NULL : &batch.array, missing == 1 ? NULL : &batch.schema,
                       missing == 2 ? NULL : &out.array, missing == 3 ? NULL : &out.schema,
                       missing == 4 ? NULL : &out.log, missing == 5 ? NULL : &out.log_schema,
                       missing == 6 ? NULL : &out.counts, &error));
    CHECK((batch.array.release != NULL) == (missing == 0) && (batch.schema.release != NULL) == (missing == 1));
    if (missing == 0) batch.array.release(&batch.array);
    if (missing == 1) batch.schema.release(&batch.schema);
    CHECK(missing == 2 || out.array.release == NULL);
    CHECK(missing == 5 || out.log_schema.release == NULL);
    CHECK(missing == 6 || out.counts.rows == 0);
  }
  CHECK(live == 0);
  close_handle(editor);
  close_handle(prior);
  EXPECT(TOEDIT_CLOSED, "closed", toedit_close(prior, &error));
  expect_usage(0, 0);
}

/* Structures that cannot be right. The address sanitizer sees whether anything is read that is not there. */
static void test_hostile(void) {
  uint64_t prior = open_prior(), editor = open_editor(prior);
  static char endless[64];
  memset(endless, 'i', sizeof endless);
  for (int i = 0;; i++) {
    struct pair batch = batch_of(stored_scores(fingerprint));
    struct ArrowArray* ids = batch.array.children[0];
    struct ArrowSchema* schema = batch.schema.children[0];
    struct ArrowArray* prior_text = batch.array.children[1]->children[6];
    void (*keep)(struct ArrowArray*) = NULL;
    switch (i) {
      case 0: batch.array.length = -1; break;
      case 1: batch.array.length = INT64_MAX; break;
      case 2: batch.array.offset = 1; break;
      case 3: batch.array.n_children = 1; break;
      case 4: batch.array.n_children = INT64_MAX; break;
      case 5: batch.array.children = NULL; break;
      case 6: batch.array.buffers = NULL; break;
      case 7: batch.array.n_buffers = -1; break;
      case 8: ids->length = 0; break;
      case 9: ids->buffers = NULL; break;
      case 10: ids->n_children = 0; break;
      case 11: ids->offset = INT64_MIN; break;
      case 12: ids->children[0]->length = N - 1; break;
      case 13: ids->dictionary = ids; break;
      case 14: ids->null_count = 1; break;
      case 15: ((int32_t*)ids->buffers[1])[0] = 4; ((int32_t*)ids->buffers[1])[1] = 3; break;
      case 16: ((int32_t*)ids->buffers[1])[1] = INT32_MAX; break;
      case 17: ((int32_t*)ids->buffers[1])[0] = INT32_MIN; break;
      case 18: schema->format = NULL; break;
      case 19: schema->format = endless; break;
      case 20: schema->format = "+l:"; break;
      case 21: schema->format = "+w:6"; schema->name = "input_ids"; break;
      case 22: schema->format = "+vl"; break;
      case 23: schema->n_children = 0; break;
      case 24: schema->children = NULL; break;
      case 25: schema->dictionary = schema; break;
      case 26: schema->name = "scores"; break;
      case 27: schema->children[0]->format = "u"; break;
      case 28: schema->children[0]->format = "g"; break;
      case 29: batch.schema.n_children = -1; break;
      case 30: batch.schema.format = "+l"; break;
      case 31: prior_text->n_buffers = 2; break;
      case 32: ((int32_t*)prior_text->buffers[1])[1] = -1; break;
      case 33: batch.schema.children[1]->children[6]->format = "z"; break;
      case 34: batch.schema.children[1]->children[0]->format = "i"; break;
      case 35: keep = ids->release; ids->release = NULL; break;
      default: {
        batch.array.release(&batch.array);
        batch.schema.release(&batch.schema);
        /* Released structures may be passed in: they are refused. */
        struct out out;
        EXPECT(TOEDIT_INPUT, "released", edit(editor, &batch, &out, &error));
        CHECK(i > 30 && live == 0);
        close_handle(editor);
        close_handle(prior);
        expect_usage(0, 0);
        return;
      }
    }
    struct ArrowArray moved = *ids;
    struct out out;
    char* error = NULL;
    int32_t status = edit(editor, &batch, &out, &error);
    if (status != TOEDIT_INPUT && status != TOEDIT_SCORES) {
      fprintf(stderr, "hostile structure %d: status %d: %s\n", i, status, error ? error : "");
      exit(1);
    }
    CHECK(error != NULL && strlen(error) > 10);
    toedit_free(error);
    if (keep != NULL) keep(&moved);
    CHECK(live == 0);
  }
}

/* gcc 12's address sanitizer has locks that a fork does not put in order: a child waits for ever for one that another thread
 * held. So with it nobody is allocating while a fork is made; without it (test_shared_library) forks come at any moment. */
#ifdef __SANITIZE_ADDRESS__
static pthread_rwlock_t allocating = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
#define MAY_ALLOCATE() CHECK(pthread_rwlock_rdlock(&allocating) == 0)
#define MAY_FORK() CHECK(pthread_rwlock_wrlock(&allocating) == 0)
#define DONE() CHECK(pthread_rwlock_unlock(&allocating) == 0)
#else
#define MAY_ALLOCATE() ((void)0)
#define MAY_FORK() ((void)0)
#define DONE() ((void)0)
#endif

/* A forked child that drops what it inherited does not enter the library's runtime, which is dead there. */
static void* edit_forever(void* argument) {
  uint64_t editor = *(uint64_t*)argument;
  for (int i = 0; i < 200; i++) {
    MAY_ALLOCATE();
    struct pair batch = batch_of(stored_scores(fingerprint));
    struct out out;
    CHECK(edit(editor, &batch, &out, NULL) == TOEDIT_OK);
    release_out(&out);
    DONE();
  }
  return NULL;
}

static void test_fork_and_threads(void) {
  uint64_t prior = open_prior(), editor = open_editor(prior);
  struct pair batch = batch_of(stored_scores(fingerprint));
  struct out out;
  EXPECT(TOEDIT_OK, "", edit(editor, &batch, &out, &error));
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, edit_forever, &editor) == 0);
  for (int i = 0; i < 10; i++) {
    MAY_FORK();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      alarm(20);
      check_edited(&out);
      release_out(&out);
      _exit(0);
    }
    DONE();
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  check_edited(&out); /* the child's release was the child's */
  release_out(&out);
  close_handle(editor);
  close_handle(prior);
  CHECK(live == 0);
  expect_usage(0, 0);
}

/* What toedit_score passes out is passed on to toedit_edit as a column, without a copy. */
static void test_score(void) {
  uint64_t prior = open_prior(), scorer = 0, editor = 0;
  /* onnxruntime_go keeps its copy of the model's path for ever: some bytes for each session. */
  __lsan_disable();
  EXPECT(TOEDIT_OK, "", toedit_scorer_open(prior, library, "{\"threads\": 2}", &scorer, &error));
  __lsan_enable();
  EXPECT(TOEDIT_OK, "",
         toedit_editor_open(prior,
                            "{\"threshold\": 1e-30, \"k\": 2, \"temperature\": 1, \"exclude_original\": true, "
                            "\"protect_special\": true, \"protected_ids\": []}",
                            &editor, &error));
  expect_usage(0, 3);
  struct pair batch = node("+s", "", 1, 1, NULL, 0, NULL, 0), scores;
  adopt(&batch, one_list("input_ids", "i", N, IDS, sizeof *IDS));
  memset(&scores, 0xFF, sizeof scores);
  EXPECT(TOEDIT_OK, "",
         toedit_score(scorer, "{\"k\": 2, \"keep\": [[0, 1]]}", &batch.array, &batch.schema, &scores.array, &scores.schema,
                      &error));
  CHECK(live == 0);
  CHECK(scores.array.length == 1 && scores.array.n_children == 7);
  CHECK(*(const uint64_t*)scores.array.children[5]->buffers[1] == ids_hash);
  CHECK(memcmp(scores.array.children[6]->buffers[2], fingerprint, 32) == 0);
  expect_usage(24, 3);

  struct pair with_scores = node("+s", "", 1, 1, NULL, 0, NULL, 0);
  adopt(&with_scores, one_list("input_ids", "i", N, IDS, sizeof *IDS));
  adopt(&with_scores, scores);
  with_scores.schema.children[1]->name = "scores"; /* its own name lies elsewhere, and is freed there */
  struct out out;
  EXPECT(TOEDIT_OK, "", edit(editor, &with_scores, &out, &error));
  CHECK(live == 0);
  CHECK(out.counts.tokens == N && out.counts.candidates == N && out.counts.changes == N);
  expect_usage(20, 3); /* the scores went with their batch */
  release_out(&out);

  batch = node("+s", "", 1, 1, NULL, 0, NULL, 0);
  adopt(&batch, one_list("input_ids", "i", N, IDS, sizeof *IDS));
  memset(&scores, 0xFF, sizeof scores);
  EXPECT(TOEDIT_INPUT, "k is 1000",
         toedit_score(scorer, "{\"k\": 1000}", &batch.array, &batch.schema, &scores.array, &scores.schema, &error));
  CHECK(scores.array.release == NULL && scores.schema.release == NULL && live == 0);
  batch = node("+s", "", 1, 1, NULL, 0, NULL, 0);
  EXPECT(TOEDIT_INPUT, "null", toedit_score(scorer, "{\"k\": 2}", &batch.array, &batch.schema, NULL, NULL, &error));
  CHECK(live == 0);
  EXPECT(TOEDIT_INPUT, "null", toedit_score(scorer, NULL, NULL, NULL, &scores.array, &scores.schema, &error));

  close_handle(scorer);
  batch = node("+s", "", 1, 1, NULL, 0, NULL, 0);
  EXPECT(TOEDIT_CLOSED, "closed",
         toedit_score(scorer, "{\"k\": 2}", &batch.array, &batch.schema, &scores.array, &scores.schema, &error));
  close_handle(editor);
  close_handle(prior);
  expect_usage(0, 0);
}

int main(int argc, char** argv) {
  CHECK(argc == 4 || argc == 5);
  folder = argv[1];
  fingerprint = argv[2];
  ids_hash = strtoull(argv[3], NULL, 10);
  library = argc == 5 ? argv[4] : NULL;
  expect_usage(0, 0);
  test_edit();
  test_errors();
  test_hostile();
  test_fork_and_threads();
  if (library != NULL) test_score();
  puts(library != NULL ? "edited and scored" : "edited");
  return 0;
}
