package initproc

const podMachine = 183 // EM_AARCH64
