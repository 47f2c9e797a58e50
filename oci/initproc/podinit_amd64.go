package initproc

const podMachine = 62 // EM_X86_64
