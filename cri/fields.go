package cri

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cri-shim/cri-shim/sandbox"
)

const (
	// maxComplaints bounds what one error says of a request that is wrong all over.
	maxComplaints = 8
	// maxComplaint bounds what it says of one field, which may quote the value.
	maxComplaint = 512
)

// fields collects what is wrong with the fields of a request, each named by its path
// in the CRI, so that a client hears of all of them at once.
type fields struct {
	bad   []string
	count int
}

// add notes that the field at path is wrong.
func (f *fields) add(path, format string, a ...any) {
	f.count++
	if len(f.bad) < maxComplaints {
		f.bad = append(f.bad, shorten(path+": "+fmt.Sprintf(format, a...), maxComplaint))
	}
}

// shorten leaves out the middle of a text that is longer than limit bytes, and says how much that is.
func shorten(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	head, tail := text[:limit*3/4], text[len(text)-limit/4:]
	return fmt.Sprintf("%s [... %d bytes ...] %s", strings.ToValidUTF8(head, ""), len(text)-len(head)-len(tail), strings.ToValidUTF8(tail, ""))
}

// err is nil, or an ErrInvalid that names the bad fields.
func (f *fields) err() error {
	if f.count == 0 {
		return nil
	}
	text := strings.Join(f.bad, "; ")
	if more := f.count - len(f.bad); more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return fmt.Errorf("%w: %s", sandbox.ErrInvalid, text)
}

// scan checks what holds for every field of every message: no NUL in a string, since
// the kernel would cut it there, and no enum value that this version does not know,
// since it would be taken for the default.
func (f *fields) scan(path string, m proto.Message) {
	if m != nil && m.ProtoReflect().IsValid() {
		f.scanMessage(path, m.ProtoReflect())
	}
}

func (f *fields) scanMessage(path string, m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		p := path + "." + string(fd.Name())
		switch {
		case fd.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, mv protoreflect.Value) bool {
				f.scanValue(p, fd.MapKey(), k.Value())
				f.scanValue(p+"["+strconv.Quote(k.String())+"]", fd.MapValue(), mv)
				return true
			})
		case fd.IsList():
			for i := range v.List().Len() {
				f.scanValue(p+"["+strconv.Itoa(i)+"]", fd, v.List().Get(i))
			}
		default:
			f.scanValue(p, fd, v)
		}
		return true
	})
}

func (f *fields) scanValue(path string, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		if strings.IndexByte(v.String(), 0) >= 0 {
			f.add(path, "contains a NUL byte")
		}
	case protoreflect.BytesKind:
		if strings.IndexByte(string(v.Bytes()), 0) >= 0 {
			f.add(path, "contains a NUL byte")
		}
	case protoreflect.EnumKind:
		if fd.Enum().Values().ByNumber(v.Enum()) == nil {
			f.add(path, "unknown value %d", v.Enum())
		}
	case protoreflect.MessageKind:
		f.scanMessage(path, v.Message())
	}
}

// need notes an empty field.
func (f *fields) need(path, value string) bool {
	if value == "" {
		f.add(path, "empty")
	}
	return value != ""
}

// maxID is more than an ID has. What is longer would be said again in the error.
const maxID = 1024

// needID is the error for a request without an ID.
func needID(path, id string) error {
	if id == "" {
		return fmt.Errorf("%w: %s: empty", sandbox.ErrInvalid, path)
	}
	if len(id) > maxID {
		return fmt.Errorf("%w: %s: %d bytes, more than any ID has", sandbox.ErrInvalid, path, len(id))
	}
	return nil
}

// absolute notes a path that is not absolute.
func (f *fields) absolute(path, value string) {
	if f.need(path, value) && value[0] != '/' {
		f.add(path, "%q is not an absolute path", value)
	}
}

// hasControl says whether s has a control character or, in names, white space.
func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func hasSpace(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f })
}

// Sizes in bytes. Kubernetes keeps a pod's annotations within 256 KiB (ValidateAnnotations)
// and adds few; the rest is room for other clients.
const (
	maxLabel       = 4096
	maxAnnotations = 1 << 20
)

// maps checks labels and annotations.
func (f *fields) maps(path string, labels, annotations map[string]string) {
	for k, v := range labels {
		f.need(path+".labels", k)
		if n := len(k) + len(v); n > maxLabel {
			f.add(path+".labels", "key and value of %.40q are %d bytes together, more than %d", k, n, maxLabel)
		}
	}
	total := 0
	for k, v := range annotations {
		f.need(path+".annotations", k)
		total += len(k) + len(v)
	}
	if total > maxAnnotations {
		f.add(path+".annotations", "%d bytes, more than %d", total, maxAnnotations)
	}
}
