#include "textflag.h"

// func expNegAVX2(x *float64, n int, constants *[16]float64)
//
// The operations of expNeg, in its order, four values at a time. n is a positive multiple of 4.
TEXT ·expNegAVX2(SB), NOSPLIT, $0-24
	MOVQ         x+0(FP), SI
	MOVQ         n+8(FP), CX
	MOVQ         constants+16(FP), DX
	VBROADCASTSD 0(DX), Y15  // 1 / ln 2
	VBROADCASTSD 8(DX), Y14  // 1/2
	VBROADCASTSD 16(DX), Y13 // ln 2, high
	VBROADCASTSD 24(DX), Y12 // ln 2, low
	VBROADCASTSD 32(DX), Y11 // 1
	VPCMPEQQ     Y10, Y10, Y10
	VPSRLQ       $54, Y10, Y10 // 1023

loop:
	VMOVUPD      (SI), Y0
	VMULPD       Y15, Y0, Y1
	VSUBPD       Y14, Y1, Y1
	VCVTTPD2DQY  Y1, X1
	VCVTDQ2PD    X1, Y2       // n
	VMULPD       Y13, Y2, Y3
	VSUBPD       Y3, Y0, Y3   // hi
	VMULPD       Y12, Y2, Y4  // lo
	VSUBPD       Y4, Y3, Y0   // r
	VSUBPD       Y0, Y3, Y3
	VSUBPD       Y4, Y3, Y3   // rest
	VMULPD       Y0, Y0, Y2   // rr
	VBROADCASTSD 40(DX), Y4   // even
	VBROADCASTSD 48(DX), Y5   // odd
	VMULPD       Y2, Y4, Y4
	VBROADCASTSD 56(DX), Y6
	VADDPD       Y6, Y4, Y4
	VMULPD       Y2, Y5, Y5
	VBROADCASTSD 64(DX), Y7
	VADDPD       Y7, Y5, Y5
	VMULPD       Y2, Y4, Y4
	VBROADCASTSD 72(DX), Y6
	VADDPD       Y6, Y4, Y4
	VMULPD       Y2, Y5, Y5
	VBROADCASTSD 80(DX), Y7
	VADDPD       Y7, Y5, Y5
	VMULPD       Y2, Y4, Y4
	VBROADCASTSD 88(DX), Y6
	VADDPD       Y6, Y4, Y4
	VMULPD       Y2, Y5, Y5
	VBROADCASTSD 96(DX), Y7
	VADDPD       Y7, Y5, Y5
	VMULPD       Y2, Y4, Y4
	VBROADCASTSD 104(DX), Y6
	VADDPD       Y6, Y4, Y4
	VMULPD       Y2, Y5, Y5
	VBROADCASTSD 112(DX), Y7
	VADDPD       Y7, Y5, Y5
	VMULPD       Y2, Y4, Y4
	VADDPD       Y14, Y4, Y4  // the last even one is 1/2
	VMULPD       Y2, Y5, Y5
	VBROADCASTSD 120(DX), Y7
	VADDPD       Y7, Y5, Y5
	VMULPD       Y0, Y5, Y5
	VADDPD       Y5, Y4, Y4   // q
	VMULPD       Y4, Y2, Y2
	VADDPD       Y3, Y2, Y2
	VADDPD       Y2, Y0, Y0
	VADDPD       Y11, Y0, Y0  // y
	VPMOVSXDQ    X1, Y1
	VPADDQ       Y10, Y1, Y1
	VPSLLQ       $52, Y1, Y1
	VMULPD       Y1, Y0, Y0
	VMOVUPD      Y0, (SI)
	ADDQ         $32, SI
	SUBQ         $4, CX
	JNZ          loop

	VZEROUPPER
	RET
