#include "textflag.h"

// func call(code, records, count uintptr)
//
// The code gets the records in R13 and their number in DI. It may use all registers but SP, R14 and R15, and the stack
// for nothing; the frame is there so that BP is saved.
TEXT ·call(SB), NOSPLIT, $8-24
	MOVQ code+0(FP), AX
	MOVQ records+8(FP), R13
	MOVQ count+16(FP), DI
	CALL AX
	RET
