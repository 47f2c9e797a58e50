package container

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// fill gives every field a value, two levels of pointers, lists and maps deep and more.
func fill(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Pointer:
		if depth > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), depth-1)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), depth)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth-1)
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	}
}

// TestParseSpec: what is read is what encoding/json reads into the specification's own type, with every field of it set
// and with each platform alone.
func TestParseSpec(t *testing.T) {
	var full specs.Spec
	fill(reflect.ValueOf(&full).Elem(), 4)
	full.Annotations = map[string]string{"a": "b"}
	for i := range reflect.TypeFor[specs.Spec]().NumField() {
		var one specs.Spec
		name := reflect.TypeFor[specs.Spec]().Field(i).Name
		reflect.ValueOf(&one).Elem().Field(i).Set(reflect.ValueOf(full).Field(i))
		for of, spec := range map[string]*specs.Spec{name: &one, "all": &full} {
			data, err := json.Marshal(spec)
			if err != nil {
				t.Fatal(err)
			}
			var want specs.Spec
			if err := json.Unmarshal(data, &want); err != nil {
				t.Fatal(err)
			}
			got, err := parseSpec(data)
			if err != nil {
				t.Fatalf("parseSpec(%s) = %v", of, err)
			}
			if diff := cmp.Diff(&want, got); diff != "" {
				t.Errorf("parseSpec(%s) (-want +got):\n%s", of, diff)
			}
		}
	}
	for _, bad := range []string{"", "{", `{"windows": 1}`, `{"linux": 1}`, `{"hooks": 1}`} {
		if _, err := parseSpec([]byte(bad)); err == nil || !strings.HasPrefix(err.Error(), configFile) {
			t.Errorf("parseSpec(%s) = %v; want an error that names %s", bad, err, configFile)
		}
	}
}
