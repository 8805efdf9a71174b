// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// SHA-256 of two messages at a time. One message alone leaves the unit idle for half of the time, since each
// SHA256RNDS2 waits for the one before. FIPS 180-4, section 6.2.2; Intel SDM volume 2, SHA256RNDS2.

// The round constants.

DATA rounds<>+0(SB)/8, $0x71374491428a2f98
DATA rounds<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA rounds<>+16(SB)/8, $0x59f111f13956c25b
DATA rounds<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA rounds<>+32(SB)/8, $0x12835b01d807aa98
DATA rounds<>+40(SB)/8, $0x550c7dc3243185be
DATA rounds<>+48(SB)/8, $0x80deb1fe72be5d74
DATA rounds<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA rounds<>+64(SB)/8, $0xefbe4786e49b69c1
DATA rounds<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA rounds<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA rounds<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA rounds<>+96(SB)/8, $0xa831c66d983e5152
DATA rounds<>+104(SB)/8, $0xbf597fc7b00327c8
DATA rounds<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA rounds<>+120(SB)/8, $0x1429296706ca6351
DATA rounds<>+128(SB)/8, $0x2e1b213827b70a85
DATA rounds<>+136(SB)/8, $0x53380d134d2c6dfc
DATA rounds<>+144(SB)/8, $0x766a0abb650a7354
DATA rounds<>+152(SB)/8, $0x92722c8581c2c92e
DATA rounds<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA rounds<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA rounds<>+176(SB)/8, $0xd6990624d192e819
DATA rounds<>+184(SB)/8, $0x106aa070f40e3585
DATA rounds<>+192(SB)/8, $0x1e376c0819a4c116
DATA rounds<>+200(SB)/8, $0x34b0bcb52748774c
DATA rounds<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA rounds<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA rounds<>+224(SB)/8, $0x78a5636f748f82ee
DATA rounds<>+232(SB)/8, $0x8cc7020884c87814
DATA rounds<>+240(SB)/8, $0xa4506ceb90befffa
DATA rounds<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL rounds<>(SB), RODATA|NOPTR, $256

// Words are big-endian.
DATA swap<>+0(SB)/8, $0x0405060700010203
DATA swap<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL swap<>(SB), RODATA|NOPTR, $16

// The message schedule's words 4i to 4i+3 are in m; s0 and s1 are the state, ABEF and CDGH. X0 is used up.
#define ROUNDS(i, m, s0, s1) \
	MOVOU       (i*16)(R8), X0 \
	PADDL       m, X0          \
	SHA256RNDS2 X0, s0, s1     \
	PSHUFD      $0x0e, X0, X0  \
	SHA256RNDS2 X0, s1, s0

// LOAD reads words 4i to 4i+3 from the message at p.
#define LOAD(i, p, m) \
	MOVOU  (i*16)(p), m \
	PSHUFB X15, m

// NEXT completes the four words after m in n; b has those before m. t is used up.
#define NEXT(b, m, n, t) \
	MOVO       m, t     \
	PALIGNR    $4, b, t \
	PADDL      t, n     \
	SHA256MSG2 m, n

// func twoBlocks(state *[2]shaState, p, q *byte, n int)
TEXT ·twoBlocks(SB), NOSPLIT, $0-32
	MOVQ  state+0(FP), DI
	MOVQ  p+8(FP), SI
	MOVQ  q+16(FP), DX
	MOVQ  n+24(FP), CX
	LEAQ  rounds<>(SB), R8
	MOVOU swap<>(SB), X15
	MOVOU 0(DI), X1
	MOVOU 16(DI), X2
	MOVOU 32(DI), X7
	MOVOU 48(DI), X8

loop:
	TESTQ CX, CX
	JZ    done
	LOAD(0, SI, X3)
	ROUNDS(0, X3, X1, X2)
	LOAD(0, DX, X9)
	ROUNDS(0, X9, X7, X8)
	LOAD(1, SI, X4)
	ROUNDS(1, X4, X1, X2)
	SHA256MSG1 X4, X3
	LOAD(1, DX, X10)
	ROUNDS(1, X10, X7, X8)
	SHA256MSG1 X10, X9
	LOAD(2, SI, X5)
	ROUNDS(2, X5, X1, X2)
	SHA256MSG1 X5, X4
	LOAD(2, DX, X11)
	ROUNDS(2, X11, X7, X8)
	SHA256MSG1 X11, X10
	LOAD(3, SI, X6)
	ROUNDS(3, X6, X1, X2)
	NEXT(X5, X6, X3, X13)
	SHA256MSG1 X6, X5
	LOAD(3, DX, X12)
	ROUNDS(3, X12, X7, X8)
	NEXT(X11, X12, X9, X14)
	SHA256MSG1 X12, X11
	ROUNDS(4, X3, X1, X2)
	NEXT(X6, X3, X4, X13)
	SHA256MSG1 X3, X6
	ROUNDS(4, X9, X7, X8)
	NEXT(X12, X9, X10, X14)
	SHA256MSG1 X9, X12
	ROUNDS(5, X4, X1, X2)
	NEXT(X3, X4, X5, X13)
	SHA256MSG1 X4, X3
	ROUNDS(5, X10, X7, X8)
	NEXT(X9, X10, X11, X14)
	SHA256MSG1 X10, X9
	ROUNDS(6, X5, X1, X2)
	NEXT(X4, X5, X6, X13)
	SHA256MSG1 X5, X4
	ROUNDS(6, X11, X7, X8)
	NEXT(X10, X11, X12, X14)
	SHA256MSG1 X11, X10
	ROUNDS(7, X6, X1, X2)
	NEXT(X5, X6, X3, X13)
	SHA256MSG1 X6, X5
	ROUNDS(7, X12, X7, X8)
	NEXT(X11, X12, X9, X14)
	SHA256MSG1 X12, X11
	ROUNDS(8, X3, X1, X2)
	NEXT(X6, X3, X4, X13)
	SHA256MSG1 X3, X6
	ROUNDS(8, X9, X7, X8)
	NEXT(X12, X9, X10, X14)
	SHA256MSG1 X9, X12
	ROUNDS(9, X4, X1, X2)
	NEXT(X3, X4, X5, X13)
	SHA256MSG1 X4, X3
	ROUNDS(9, X10, X7, X8)
	NEXT(X9, X10, X11, X14)
	SHA256MSG1 X10, X9
	ROUNDS(10, X5, X1, X2)
	NEXT(X4, X5, X6, X13)
	SHA256MSG1 X5, X4
	ROUNDS(10, X11, X7, X8)
	NEXT(X10, X11, X12, X14)
	SHA256MSG1 X11, X10
	ROUNDS(11, X6, X1, X2)
	NEXT(X5, X6, X3, X13)
	SHA256MSG1 X6, X5
	ROUNDS(11, X12, X7, X8)
	NEXT(X11, X12, X9, X14)
	SHA256MSG1 X12, X11
	ROUNDS(12, X3, X1, X2)
	NEXT(X6, X3, X4, X13)
	SHA256MSG1 X3, X6
	ROUNDS(12, X9, X7, X8)
	NEXT(X12, X9, X10, X14)
	SHA256MSG1 X9, X12
	ROUNDS(13, X4, X1, X2)
	NEXT(X3, X4, X5, X13)
	ROUNDS(13, X10, X7, X8)
	NEXT(X9, X10, X11, X14)
	ROUNDS(14, X5, X1, X2)
	NEXT(X4, X5, X6, X13)
	ROUNDS(14, X11, X7, X8)
	NEXT(X10, X11, X12, X14)
	ROUNDS(15, X6, X1, X2)
	ROUNDS(15, X12, X7, X8)

	// The sum with the state before, which is still in memory.
	MOVOU 0(DI), X3
	MOVOU 16(DI), X4
	MOVOU 32(DI), X9
	MOVOU 48(DI), X10
	PADDL X3, X1
	PADDL X4, X2
	PADDL X9, X7
	PADDL X10, X8
	MOVOU X1, 0(DI)
	MOVOU X2, 16(DI)
	MOVOU X7, 32(DI)
	MOVOU X8, 48(DI)
	ADDQ  $64, SI
	ADDQ  $64, DX
	DECQ  CX
	JMP   loop

done:
	RET

// func cpuid(leaf, sub uint32) (a, b, c, d uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-24
	MOVL leaf+0(FP), AX
	MOVL sub+4(FP), CX
	CPUID
	MOVL AX, a+8(FP)
	MOVL BX, b+12(FP)
	MOVL CX, c+16(FP)
	MOVL DX, d+20(FP)
	RET
