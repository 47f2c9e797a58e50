package config

import (
	"bytes"
	"reflect"
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
