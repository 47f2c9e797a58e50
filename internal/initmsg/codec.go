package initmsg

import (
	"encoding/binary"
	"errors"
	"strconv"
	"unsafe"
)

// codec walks a message once, in one direction: every field names itself to the
// same method whether it is being written or read, so that the two cannot
// drift apart. There is no reflection: the init decodes on the hot path.
type codec struct {
	buf     []byte // written so far, or still to be read
	reading bool
	room    room // to be read into, as far as it goes
	err     error
}

var errShort = errors.New("message ends early")

func (c *codec) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *codec) u64(v *uint64) {
	if c.err != nil {
		return
	}
	if !c.reading {
		c.buf = binary.AppendUvarint(c.buf, *v)
		return
	}
	n, size := binary.Uvarint(c.buf)
	if size <= 0 {
		c.fail(errShort)
		return
	}
	*v, c.buf = n, c.buf[size:]
}

func (c *codec) u32(v *uint32) {
	n := uint64(*v)
	c.u64(&n)
	if n > 1<<32-1 {
		c.fail(errors.New(strconv.FormatUint(n, 10) + " does not fit 32 bits"))
		return
	}
	*v = uint32(n)
}

func (c *codec) i64(v *int64) {
	n := uint64(*v<<1) ^ uint64(*v>>63) // zigzag
	c.u64(&n)
	*v = int64(n>>1) ^ -int64(n&1)
}

func (c *codec) i32(v *int32) {
	n := int64(*v)
	c.i64(&n)
	if n != int64(int32(n)) {
		c.fail(errors.New(strconv.FormatInt(n, 10) + " does not fit 32 bits"))
		return
	}
	*v = int32(n)
}

func (c *codec) flag(v *bool) {
	var n uint64
	if *v {
		n = 1
	}
	c.u64(&n)
	if n > 1 {
		c.fail(errors.New(strconv.FormatUint(n, 10) + " is not a boolean"))
		return
	}
	*v = n == 1
}

func (c *codec) bytes(v *[]byte) {
	n := c.count(len(*v))
	if c.err != nil {
		return
	}
	if !c.reading {
		c.buf = append(c.buf, *v...)
		return
	}
	*v = nil
	if n > 0 {
		*v = c.buf[:n:n]
	}
	c.buf = c.buf[n:]
}

func (c *codec) str(v *string) {
	n := c.count(len(*v))
	if c.err != nil {
		return
	}
	if !c.reading {
		c.buf = append(c.buf, *v...)
		return
	}
	*v, c.buf = unsafe.String(unsafe.SliceData(c.buf), n), c.buf[n:]
}

// count codes a length. Each element takes a byte or more, so a length
// beyond what is left is an error before anything is allocated for it.
func (c *codec) count(n int) int {
	u := uint64(n)
	c.u64(&u)
	if c.err == nil && c.reading && u > uint64(len(c.buf)) {
		c.fail(errShort)
	}
	if c.err != nil {
		return 0
	}
	return int(u)
}

// list codes a slice, element by element.
func list[T any](c *codec, v *[]T, each func(*codec, *T)) { listIn(c, v, each, nil) }

// listIn is list with room for what is read: what fits is taken from it, and what does not gets an array of its own.
func listIn[T any](c *codec, v *[]T, each func(*codec, *T), room *[]T) {
	n := c.count(len(*v))
	if c.reading {
		*v = nil
		switch {
		case n == 0 || c.err != nil:
		case room != nil && n <= len(*room):
			*v, *room = (*room)[:n:n], (*room)[n:]
		default:
			*v = make([]T, n)
		}
	}
	for i := range *v {
		if c.err != nil {
			return
		}
		each(c, &(*v)[i])
	}
}

// optional codes a pointer as a flag and the value; what is read has its place in room, unless that is nil.
func optional[T any](c *codec, v **T, value func(*codec, *T), room *T) {
	set := *v != nil
	c.flag(&set)
	if c.err != nil || !set {
		return
	}
	if c.reading {
		if room == nil {
			room = new(T)
		}
		*v = room
	}
	value(c, *v)
}

func (c *codec) strs(v *[]string) { listIn(c, v, (*codec).str, &c.room.strings) }

func (c *codec) u32s(v *[]uint32) { list(c, v, (*codec).u32) }
