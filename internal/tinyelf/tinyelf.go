// Package tinyelf makes static executables of a few machine instructions, for processes that only have to exist: a Go
// program would cost a millisecond to start and a megabyte to keep.
package tinyelf

import "encoding/binary"

// Executable is code as a program for this machine: the ELF header, one segment for the code, which begins at its first
// byte, and one that says that the stack is not executable (elf(5)).
func Executable(code []byte) []byte {
	const (
		base   = 0x10000
		header = 64
		ph     = 56
		entry  = header + 2*ph
	)
	le := binary.LittleEndian
	b := make([]byte, entry, entry+len(code))
	copy(b, "\x7fELF\x02\x01\x01") // 64 bit, little endian, version 1
	le.PutUint16(b[16:], 2)        // ET_EXEC
	le.PutUint16(b[18:], machine)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], base+entry)
	le.PutUint64(b[32:], header) // program headers
	le.PutUint16(b[52:], header)
	le.PutUint16(b[54:], ph)
	le.PutUint16(b[56:], 2)
	size := uint64(entry + len(code))
	p := b[header:]
	le.PutUint32(p, 1)     // PT_LOAD
	le.PutUint32(p[4:], 5) // read, execute
	le.PutUint64(p[16:], base)
	le.PutUint64(p[24:], base)
	le.PutUint64(p[32:], size)
	le.PutUint64(p[40:], size)
	le.PutUint64(p[48:], 0x10000) // the largest page size
	p = p[ph:]
	le.PutUint32(p, 0x6474e551) // PT_GNU_STACK
	le.PutUint32(p[4:], 6)      // read, write
	return append(b, code...)
}
