#include "textflag.h"

// func HostTSC() uint64
TEXT ·HostTSC(SB), NOSPLIT, $0-8
	LFENCE // earlier loads first: a time read after a message is not before it
	RDTSC
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, ret+0(FP)
	RET
