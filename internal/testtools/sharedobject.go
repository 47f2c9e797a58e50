package testtools

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// SharedObject is the smallest ELF file that says to be a shared object for x86-64 with a soname. No loader can use it.
func SharedObject(soname string) []byte {
	const headers, sections = 64, 3
	strtab := append([]byte{0}, soname...)
	strtab = append(strtab, 0)
	for len(strtab)%8 != 0 {
		strtab = append(strtab, 0)
	}
	dynamicAt := uint64(headers + len(strtab))
	dynamic := []elf.Dyn64{{Tag: int64(elf.DT_SONAME), Val: 1}, {Tag: int64(elf.DT_NULL)}}
	var b bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err) // of fixed-size values to memory
		}
	}
	h := elf.Header64{
		Type: uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: headers,
		Shoff: dynamicAt + 32, Shentsize: 64, Shnum: sections, Shstrndx: 1,
	}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	put(h)
	b.Write(strtab)
	put(dynamic)
	put([sections]elf.Section64{
		{},
		{Type: uint32(elf.SHT_STRTAB), Off: headers, Size: uint64(len(strtab))},
		{Type: uint32(elf.SHT_DYNAMIC), Off: dynamicAt, Size: 32, Link: 1, Entsize: 16},
	})
	return b.Bytes()
}
