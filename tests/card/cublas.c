/* Stands in for cuBLAS, cuBLASLt and cuDNN (cudart.c says how): handles that nobody looks into, products that are written down. */
#include <stdlib.h>

void card_log(const char *what, const char *which) __attribute__((weak));
static int product(const char *name) {
    if (card_log) card_log("product", name);
    return 0;
}
static int handle(void **p) { *p = calloc(1, 64); return 0; }

int cublasCreate_v2(void **p) { return handle(p); }
int cublasGetMathMode(void *p, int *mode) { (void)p; *mode = 0; return 0; }
const char *cublasGetStatusName(int status) { (void)status; return "stand-in"; }
const char *cublasGetStatusString(int status) { (void)status; return "stand-in"; }
int cublasSetMathMode(void *p, int mode) {
    (void)p;
    if (card_log && mode == 3) card_log("mode", "TF32"); /* CUBLAS_TF32_TENSOR_OP_MATH */
    return 0;
}
int cublasSgemm_v2(void) { return product("float32"); }
int cublasSgemmBatched(void) { return product("float32"); }
int cublasSgemmStridedBatched(void) { return product("float32"); }
int cublasGemmEx(void) { return product("half"); }
int cublasGemmBatchedEx(void) { return product("half"); }
int cublasGemmStridedBatchedEx(void) { return product("half"); }
int cublasLtMatmul(void) { return product("lt"); }

int cublasLtCreate(void **p) { return handle(p); }
int cublasLtMatmulDescCreate(void **p) { return handle(p); }
int cublasLtMatrixLayoutCreate(void **p) { return handle(p); }
int cublasLtMatmulPreferenceCreate(void **p) { return handle(p); }
int cublasLtMatmulAlgoGetHeuristic(void *p, void *what, void *a, void *b, void *c, void *d, void *preference, int asked,
                                   void *results, int *found) {
    (void)p, (void)what, (void)a, (void)b, (void)c, (void)d, (void)preference, (void)asked, (void)results;
    *found = 1;
    return 0;
}

int cudnnCreate(void **p) { return handle(p); }
size_t cudnnGetVersion(void) { return 90000; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int status) { (void)status; return "stand-in"; }
