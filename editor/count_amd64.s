#include "textflag.h"

// func countBelowAVX2(last uint32, logp *float32, n int) uint32
//
// One lane a value: bits + bandBias wraps around in 32 bits as it does in Go, and a value is below the limit iff its
// unsigned minimum with limit - 1 is itself. A lane that compares equal is -1, so subtracting counts.
TEXT ·countBelowAVX2(SB), NOSPLIT, $0-28
	MOVL         last+0(FP), AX
	MOVQ         logp+8(FP), SI
	MOVQ         n+16(FP), CX
	MOVQ         AX, X0
	VPBROADCASTD X0, Y0              // limit - 1
	MOVL         $0x7fffff, AX
	MOVQ         AX, X1
	VPBROADCASTD X1, Y1              // bandBias
	VPXOR        Y2, Y2, Y2          // counts, two chains
	VPXOR        Y3, Y3, Y3

loop:
	VPADDD   (SI), Y1, Y4
	VPADDD   32(SI), Y1, Y5
	VPMINUD  Y4, Y0, Y6
	VPMINUD  Y5, Y0, Y7
	VPCMPEQD Y4, Y6, Y6
	VPCMPEQD Y5, Y7, Y7
	VPSUBD   Y6, Y2, Y2
	VPSUBD   Y7, Y3, Y3
	ADDQ     $64, SI
	SUBQ     $16, CX
	JNZ      loop

	VPADDD       Y3, Y2, Y2
	VEXTRACTI128 $1, Y2, X3
	VPADDD       X3, X2, X2
	VPSHUFD      $0x4e, X2, X3
	VPADDD       X3, X2, X2
	VPSHUFD      $0xb1, X2, X3
	VPADDD       X3, X2, X2
	VZEROUPPER
	MOVQ         X2, AX
	MOVL         AX, ret+24(FP)
	RET
