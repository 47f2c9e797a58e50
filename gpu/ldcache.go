package gpu

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The format of /etc/ld.so.cache (glibc, sysdeps/generic/dl-cache.h): "glibc-ld.so.cache1.1", alone or after the
// older "ld.so-1.7.0", and extensions behind the strings.
const (
	ldMagicOld = "ld.so-1.7.0"
	ldMagic    = "glibc-ld.so.cache1.1"

	ldHeaderSize    = 48
	ldEntrySize     = 24
	ldOldHeaderSize = 16 // the magic, padding, a count
	ldOldEntrySize  = 12

	ldFlagsMask    = 3 // 0: endianness not recorded; 2: little; 3: big
	ldLittleEndian = 2

	ldExtensionMagic  = 0xeaa42174 // (uint32_t) -358342284
	ldExtensionHWCaps = 1          // cache_extension_tag_glibc_hwcaps
	ldExtensionEntry  = 16
	ldHWCapExtension  = 1 << 62 // DL_CACHE_HWCAP_EXTENSION: the low half is an index into the names
	ldHWCapExtMask    = 0xffff_ffff << 32
	ldMaxEntries      = 1 << 20
	ldMaxString       = 4096
	ldMaxCache        = 32 << 20
	ldGeneratorTag    = 0 // cache_extension_tag_generator
	ldGenerator       = "cri-shim"
	ldELFLibc6        = 3 // FLAG_ELF_LIBC6
	ldFlagX8664       = 0x0300
	ldFlagAArch64     = 0x0a00
)

// errNotLDCache: the file is of no format known here.
var errNotLDCache = errors.New("not a ld.so.cache of glibc")

// ldEntry is one library in the loader's cache.
type ldEntry struct {
	Key   string // the soname
	Value string // the path
	Flags int32  // architecture and ABI
	// HWCap is the old bit mask of what the processor must have; HWCapName is the directory below glibc-hwcaps
	// ("x86-64-v3") that takes its place since glibc 2.33.
	HWCap     uint64
	HWCapName string
	OSVersion uint32
}

// parseLDCache reads a cache, which may be an image's: nothing in it is trusted.
func parseLDCache(b []byte) ([]ldEntry, error) {
	if len(b) > ldMaxCache {
		return nil, fmt.Errorf("ld.so.cache: %d bytes", len(b))
	}
	if bytes.HasPrefix(b, []byte(ldMagicOld)) {
		if len(b) < ldOldHeaderSize {
			return nil, errNotLDCache
		}
		n := uint64(binary.LittleEndian.Uint32(b[12:]))
		// The newer part is aligned to 8 bytes (ALIGN_CACHE).
		at := (uint64(ldOldHeaderSize) + n*ldOldEntrySize + 7) &^ 7
		if at > uint64(len(b)) {
			return nil, errNotLDCache
		}
		b = b[at:]
	}
	if len(b) < ldHeaderSize || string(b[:len(ldMagic)]) != ldMagic {
		return nil, errNotLDCache
	}
	if f := b[28] & ldFlagsMask; f != 0 && f != ldLittleEndian {
		return nil, errors.New("ld.so.cache of the other byte order")
	}
	count := uint64(binary.LittleEndian.Uint32(b[20:]))
	if count > ldMaxEntries || ldHeaderSize+count*ldEntrySize > uint64(len(b)) {
		return nil, fmt.Errorf("ld.so.cache: %d entries do not fit into it", count)
	}
	names, err := parseHWCapNames(b)
	if err != nil {
		return nil, err
	}
	out := make([]ldEntry, 0, count)
	for i := range count {
		e := b[ldHeaderSize+i*ldEntrySize:]
		entry := ldEntry{
			Flags: int32(binary.LittleEndian.Uint32(e)), OSVersion: binary.LittleEndian.Uint32(e[12:]),
			HWCap: binary.LittleEndian.Uint64(e[16:]),
		}
		if entry.Key, err = ldString(b, binary.LittleEndian.Uint32(e[4:])); err == nil {
			entry.Value, err = ldString(b, binary.LittleEndian.Uint32(e[8:]))
		}
		if err != nil {
			return nil, fmt.Errorf("ld.so.cache: entry %d: %w", i, err)
		}
		if entry.HWCap&ldHWCapExtMask == ldHWCapExtension {
			at := entry.HWCap & 0xffff_ffff
			if at >= uint64(len(names)) {
				return nil, fmt.Errorf("ld.so.cache: entry %d: no hardware capability %d", i, at)
			}
			entry.HWCap, entry.HWCapName = 0, names[at]
		}
		out = append(out, entry)
	}
	return out, nil
}

// ldString reads a string; offsets count from the header of the newer format.
func ldString(b []byte, at uint32) (string, error) {
	if uint64(at) >= uint64(len(b)) {
		return "", fmt.Errorf("a string at %d, behind the end", at)
	}
	s := b[at:min(uint64(len(b)), uint64(at)+ldMaxString)]
	end := bytes.IndexByte(s, 0)
	if end < 0 {
		return "", fmt.Errorf("a string at %d without an end", at)
	}
	return string(s[:end]), nil
}

// parseHWCapNames reads the extension with the names of hardware capabilities; a cache need not have one.
func parseHWCapNames(b []byte) ([]string, error) {
	at := uint64(binary.LittleEndian.Uint32(b[32:]))
	if at == 0 {
		return nil, nil
	}
	if at+8 > uint64(len(b)) || binary.LittleEndian.Uint32(b[at:]) != ldExtensionMagic {
		return nil, errors.New("ld.so.cache: bad extensions")
	}
	count := uint64(binary.LittleEndian.Uint32(b[at+4:]))
	if at+8+count*ldExtensionEntry > uint64(len(b)) {
		return nil, errors.New("ld.so.cache: extensions behind the end")
	}
	for i := range count {
		s := b[at+8+i*ldExtensionEntry:]
		if binary.LittleEndian.Uint32(s) != ldExtensionHWCaps {
			continue
		}
		from, size := uint64(binary.LittleEndian.Uint32(s[8:])), uint64(binary.LittleEndian.Uint32(s[12:]))
		if from+size > uint64(len(b)) || size%4 != 0 {
			return nil, errors.New("ld.so.cache: hardware capabilities behind the end")
		}
		var names []string
		for p := from; p < from+size; p += 4 {
			name, err := ldString(b, binary.LittleEndian.Uint32(b[p:]))
			if err != nil {
				return nil, fmt.Errorf("ld.so.cache: hardware capability: %w", err)
			}
			names = append(names, name)
		}
		return names, nil
	}
	return nil, nil
}

// mergeLDCache returns a cache with the entries of have and ours; ours replace those of the same name and ABI.
func mergeLDCache(have, ours []ldEntry) []ldEntry {
	type id struct {
		key   string
		flags int32
	}
	replaced := make(map[id]bool, len(ours))
	for _, e := range ours {
		replaced[id{e.Key, e.Flags}] = true
	}
	out := make([]ldEntry, 0, len(have)+len(ours))
	for _, e := range have {
		if !replaced[id{e.Key, e.Flags}] {
			out = append(out, e)
		}
	}
	return append(out, ours...)
}

// encodeLDCache writes a cache of the newer format. The loader searches it in halves, so the entries are in the order
// of ldconfig: descending by name (_dl_cache_libcmp), entries for better processors first.
func encodeLDCache(entries []ldEntry) []byte {
	entries = slices.Clone(entries)
	slices.SortStableFunc(entries, func(a, b ldEntry) int {
		return -cmp.Or(
			libcmp(a.Key, b.Key), cmp.Compare(a.Flags, b.Flags), cmp.Compare(a.HWCapName, b.HWCapName),
			cmp.Compare(a.HWCap, b.HWCap))
	})
	var caps []string
	for _, e := range entries {
		if e.HWCapName != "" && !slices.Contains(caps, e.HWCapName) {
			caps = append(caps, e.HWCapName)
		}
	}
	slices.Sort(caps) // ldconfig too: the index is the order

	var text []byte
	start := ldHeaderSize + len(entries)*ldEntrySize
	at := make(map[string]uint32, 2*len(entries))
	put := func(s string) uint32 {
		if p, ok := at[s]; ok {
			return p
		}
		p := uint32(start + len(text))
		at[s] = p
		text = append(append(text, s...), 0)
		return p
	}
	le := binary.LittleEndian
	out := make([]byte, ldHeaderSize, start+64*len(entries)+128)
	copy(out, ldMagic)
	for _, e := range entries {
		hwcap := e.HWCap
		if e.HWCapName != "" {
			hwcap = ldHWCapExtension | uint64(slices.Index(caps, e.HWCapName))
		}
		out = le.AppendUint32(out, uint32(e.Flags))
		out = le.AppendUint32(out, put(e.Key))
		out = le.AppendUint32(out, put(e.Value))
		out = le.AppendUint32(out, e.OSVersion)
		out = le.AppendUint64(out, hwcap)
	}
	capAt := make([]uint32, len(caps))
	for i, name := range caps {
		capAt[i] = put(name)
	}
	le.PutUint32(out[20:], uint32(len(entries)))
	le.PutUint32(out[24:], uint32(len(text)))
	out[28] = ldLittleEndian
	out = append(out, text...)
	for len(out)%4 != 0 {
		out = append(out, 0)
	}
	return appendLDExtensions(out, capAt)
}

func appendLDExtensions(out []byte, caps []uint32) []byte {
	le := binary.LittleEndian
	at := len(out)
	le.PutUint32(out[32:], uint32(at))
	sections := uint32(1)
	if len(caps) > 0 {
		sections = 2
	}
	generator := uint32(at) + 8 + sections*ldExtensionEntry
	section := func(tag, from, size uint32) {
		for _, v := range []uint32{tag, 0, from, size} {
			out = le.AppendUint32(out, v)
		}
	}
	out = le.AppendUint32(out, ldExtensionMagic)
	out = le.AppendUint32(out, sections)
	section(ldGeneratorTag, generator, uint32(len(ldGenerator)))
	if len(caps) > 0 {
		// The indices are 32-bit words, so the generator's name is padded.
		section(ldExtensionHWCaps, generator+(uint32(len(ldGenerator))+3)&^3, uint32(4*len(caps)))
	}
	out = append(out, ldGenerator...)
	for len(out)%4 != 0 {
		out = append(out, 0)
	}
	for _, c := range caps {
		out = le.AppendUint32(out, c)
	}
	return out
}

// libcmp is the loader's order of names (_dl_cache_libcmp): numbers within them count as numbers, and come after letters.
func libcmp(a, b string) int {
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	number := func(s string) (n uint64, rest string) {
		for s != "" && digit(s[0]) {
			n, s = n*10+uint64(s[0]-'0'), s[1:]
		}
		return n, s
	}
	at := func(s string) byte {
		if s == "" {
			return 0
		}
		return s[0]
	}
	for a != "" {
		switch {
		case digit(a[0]) && digit(at(b)):
			var x, y uint64
			x, a = number(a)
			y, b = number(b)
			if x != y {
				return cmp.Compare(x, y)
			}
		case digit(a[0]):
			return 1
		case digit(at(b)):
			return -1
		case a[0] != at(b):
			return cmp.Compare(int8(a[0]), int8(at(b)))
		default:
			a, b = a[1:], b[1:]
		}
	}
	return cmp.Compare(0, int(at(b)))
}
