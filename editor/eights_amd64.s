#include "go_asm.h"
#include "textflag.h"

// func readEightsAVX2(a *eightsInput) int
//
// A candidate at a time, a choice a lane; eights.go says what is to be found out and portableEight does the same in Go.
// Lanes are all ones where something holds.
TEXT ·readEightsAVX2(SB), NOSPLIT, $0-16
	MOVQ         a+0(FP), AX
	MOVQ         eightsInput_candidates(AX), SI
	MOVQ         eightsInput_n(AX), CX
	MOVQ         eightsInput_topPos(AX), DX
	MOVQ         eightsInput_ids(AX), DI
	MOVQ         eightsInput_topIDs(AX), R8
	MOVQ         eightsInput_topLogP(AX), R9
	MOVQ         eightsInput_stride(AX), R10
	MOVQ         eightsInput_index(AX), R11
	MOVQ         eightsInput_common(AX), R12
	VPBROADCASTD eightsInput_plain+0(AX), Y6 // the first id that is surely not barred
	VPBROADCASTD eightsInput_plain+4(AX), Y7
	VPCMPEQD     Y15, Y15, Y15
	VPADDD       Y15, Y7, Y7                 // how many there are - 1
	MOVQ         eightsInput_beyond(AX), BX
	VMOVDQU      (BX), Y8                    // the lanes beyond k
	MOVL         $const_halfBase, BX
	VMOVD        BX, X9
	VPBROADCASTD X9, Y9
	MOVL         $(const_halfCount - 1), BX
	VMOVD        BX, X10
	VPBROADCASTD X10, Y10
	MOVL         $const_oneIndex, BX
	VMOVD        BX, X11
	VPBROADCASTD X11, Y11
	VPSRLD       $16, Y15, Y12               // 0xffff
	MOVL         $-1, BX
	VMOVD        BX, X13                     // the first lane; it clears the others, which MOVQ would not
	VPXOR        Y14, Y14, Y14
	XORQ         R13, R13                    // how many are common

loop:
	MOVLQSX      (SI), AX
	MOVLQSX      (DX)(AX*4), BX
	VPBROADCASTD (DI)(BX*4), Y0              // old
	IMULQ        R10, AX
	VMOVDQU      (R8)(AX*1), Y1              // ids
	VMOVDQU      (R9)(AX*1), Y2              // log probabilities

	// The first id is old and no other one, and no other one is barred.
	VPCMPEQD Y0, Y1, Y0
	VPXOR    Y13, Y0, Y0                     // wrong
	VPSUBD   Y6, Y1, Y1
	VPMINUD  Y7, Y1, Y3
	VPCMPEQD Y1, Y3, Y3
	VPOR     Y13, Y3, Y3
	VPANDN   Y3, Y0, Y0                      // right

	// halfIndex of each, within the table; oneIndex where it is zero.
	VPSRLD    $13, Y2, Y1
	VPSLLD    $19, Y2, Y3
	VPOR      Y1, Y3, Y1
	VPSUBD    Y9, Y1, Y1
	VPMINUD   Y10, Y1, Y3
	VPCMPEQD  Y1, Y3, Y3
	VCMPPS    $0, Y14, Y2, Y2                // zero
	VPOR      Y2, Y3, Y3
	VPAND     Y3, Y0, Y0
	VPBLENDVB Y2, Y11, Y1, Y1
	VPOR      Y8, Y0, Y0
	VPOR      Y8, Y1, Y1
	VPAND     Y12, Y1, Y1
	VPACKUSDW Y1, Y1, Y1
	VPERMQ    $0x08, Y1, Y1
	VMOVDQU   X1, (R11)

	VMOVMSKPS Y0, AX
	XORL      BX, BX
	CMPL      AX, $0xff
	SETEQ     BX
	MOVB      BX, (R12)
	ADDQ      BX, R13
	ADDQ      $4, SI
	ADDQ      $16, R11
	INCQ      R12
	DECQ      CX
	JNZ       loop

	VZEROUPPER
	MOVQ R13, ret+8(FP)
	RET
