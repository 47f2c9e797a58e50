package config

import (
	"bytes"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Render is c as TOML: every key with its documentation above it. It loads back to c.
func Render(c Config) []byte {
	var out bytes.Buffer
	value := reflect.ValueOf(c)
	for i := range value.NumField() {
		field := value.Type().Field(i)
		if i > 0 {
			out.WriteByte('\n')
		}
		for _, line := range wrap(field.Tag.Get("doc"), 98) {
			out.WriteString("# " + line + "\n")
		}
		if field.Type.Kind() == reflect.Map {
			renderRuntimes(&out, c.Runtimes)
			continue
		}
		v := value.Field(i).Interface()
		// A nil slice would be left out.
		if list := value.Field(i); list.Kind() == reflect.Slice && list.IsNil() {
			v = reflect.MakeSlice(list.Type(), 0, 0).Interface()
		}
		line, err := toml.Marshal(map[string]any{field.Tag.Get("toml"): v})
		if err != nil {
			panic("config: " + field.Name + ": " + err.Error()) // a field of a type that TOML lacks
		}
		out.Write(line)
	}
	return out.Bytes()
}

// renderRuntimes writes a table for each runtime, which must come after every other key, or an example of one.
func renderRuntimes(out *bytes.Buffer, all map[string]Runtime) {
	comment := ""
	if len(all) == 0 {
		all = map[string]Runtime{"runc": {Path: "/usr/sbin/runc"}}
		comment = "# "
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		r := all[name]
		if r.Options == nil {
			r.Options = []string{}
		}
		if r.Timeout.Duration == 0 {
			r.Timeout.Duration = DefaultRuntimeTimeout
		}
		text, err := toml.Marshal(r)
		if err != nil {
			panic("config: runtimes: " + err.Error())
		}
		for line := range strings.Lines("[runtimes." + name + "]\n" + string(text)) {
			out.WriteString(comment + line)
		}
	}
}

// wrap breaks text between words into lines of at most width bytes.
func wrap(text string, width int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	return append(lines, line)
}
