package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	File   string // "" where a default is at fault
	Line   int    // from 1; 0 where no line is known
	Key    string // "" where a file cannot be read at all
	Reason string
}

// Error is file:line: key: reason, less what is not known.
func (p Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File + ":")
		if p.Line > 0 {
			fmt.Fprintf(&b, "%d:", p.Line)
		}
		b.WriteByte(' ')
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	return b.String() + p.Reason
}

// Problems is the error of Load: all that is wrong, in the order it was found, never empty.
type Problems []Problem

// Error has one line per problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Load reads the file at path and the files conf.d/*.toml beside it, in name order, over the defaults; a
// later file wins key by key. With path "" that is DefaultPath, which need not exist; a file that is
// named must. The error is of type Problems.
func Load(path string) (*Config, error) {
	l := loader{config: Default(), setAt: map[string]place{}}
	optional := path == ""
	if optional {
		path = DefaultPath
	}
	l.readFile(path, optional)
	// Not filepath.Glob: a folder with brackets in its name is no pattern.
	dir := filepath.Join(filepath.Dir(path), "conf.d")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.problems = append(l.problems, Problem{File: dir, Reason: reason(err)})
	}
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), ".toml") {
			l.readFile(filepath.Join(dir, entry.Name()), false)
		}
	}
	// A value that could not be decoded has its default here, so that nothing is reported twice.
	for _, p := range Validate(l.config) {
		at := l.place(p.Key)
		p.File, p.Line = at.file, at.line
		l.problems = append(l.problems, p)
	}
	if len(l.problems) > 0 {
		return nil, l.problems
	}
	return &l.config, nil
}

type place struct {
	file string
	line int
}

// place is where a key was set, or else the table that it belongs to.
func (l *loader) place(key string) place {
	for {
		if at, ok := l.setAt[key]; ok {
			return at
		}
		dot := strings.LastIndexByte(key, '.')
		if dot < 0 {
			return place{}
		}
		key = key[:dot]
	}
}

type loader struct {
	config   Config
	problems Problems
	setAt    map[string]place // the line that set a key last
}

func (l *loader) readFile(path string, optional bool) {
	data, err := os.ReadFile(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		l.problems = append(l.problems, Problem{File: path, Reason: reason(err)})
		return
	}
	l.decode(path, data)
}

// reason is the error less the path, which the Problem names.
func reason(err error) string {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Op + ": " + pathError.Err.Error()
	}
	return err.Error()
}

// decode lays one file over the configuration; one with problems changes nothing.
func (l *loader) decode(file string, data []byte) {
	next := clone(l.config)
	err := decodeStrictly(data, &next)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case err == nil:
		l.config = next
		for _, key := range keys {
			if line := lineOf(data, key); line > 0 {
				l.setAt[key] = place{file, line}
			}
		}
		for name := range next.Runtimes {
			if line := lineOf(data, "runtimes."+name); line > 0 {
				l.setAt["runtimes."+name] = place{file, line}
			}
		}
	case errors.As(err, &unknown):
		for i := range unknown.Errors {
			l.problems = append(l.problems, unknownKey(file, &unknown.Errors[i]))
		}
	case errors.As(err, &wrong):
		line, _ := wrong.Position()
		reason := strings.TrimPrefix(wrong.Error(), "toml: ")
		l.problems = append(l.problems, Problem{file, line, strings.Join(wrong.Key(), "."), reason})
	default:
		key := culprit(data)
		l.problems = append(l.problems, Problem{file, lineOf(data, key), key, err.Error()})
	}
}

func decodeStrictly(data []byte, c *Config) error {
	return toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(c)
}

// clone keeps the decoder from writing into lists that c shares with its origin.
func clone(c Config) Config {
	c.CNIBinDirs = slices.Clone(c.CNIBinDirs)
	c.RegistryConfigDirs = slices.Clone(c.RegistryConfigDirs)
	c.RegistryAuthFiles = slices.Clone(c.RegistryAuthFiles)
	c.DecryptionKeys = slices.Clone(c.DecryptionKeys)
	c.PinnedImages = slices.Clone(c.PinnedImages)
	c.DefaultUlimits = slices.Clone(c.DefaultUlimits)
	c.Runtimes = maps.Clone(c.Runtimes)
	for name, r := range c.Runtimes {
		r.Options = slices.Clone(r.Options)
		c.Runtimes[name] = r
	}
	return c
}

// culprit is the key whose value Config does not take, for the errors that the decoder gives no place
// (a number where a text is wanted).
func culprit(data []byte) string {
	var values map[string]any
	if toml.Unmarshal(data, &values) != nil {
		return ""
	}
	for _, key := range keys {
		value, ok := values[key]
		if !ok {
			continue
		}
		alone, err := toml.Marshal(map[string]any{key: value})
		if err == nil && decodeStrictly(alone, new(Config)) != nil {
			return key
		}
	}
	return ""
}

func unknownKey(file string, e *toml.DecodeError) Problem {
	line, _ := e.Position()
	key := strings.Join(e.Key(), ".")
	p := Problem{File: file, Line: line, Key: key, Reason: "unknown key"}
	if near := nearest(key); near != "" {
		p.Reason += fmt.Sprintf("; did you mean %s?", near)
	}
	return p
}

// keys are the TOML names in the order of Config's fields.
var keys = func() (names []string) {
	t := reflect.TypeFor[Config]()
	for i := range t.NumField() {
		names = append(names, t.Field(i).Tag.Get("toml"))
	}
	return names
}()

// lineOf is the line that sets key, 0 where none does: one that starts with the key, or with the header of its table.
// The keys of tables have other names than those outside.
func lineOf(data []byte, key string) int {
	name := `["']?` + regexp.QuoteMeta(key) + `["']?[ \t]*`
	at := regexp.MustCompile(`(?m)^[ \t]*(?:` + name + `=|\[[ \t]*` + name + `[].])`).FindIndex(data)
	if at == nil {
		return 0
	}
	return 1 + bytes.Count(data[:at[0]], []byte("\n"))
}

// nearest is the known key with the smallest edit distance, "" where every key is too far to be meant.
func nearest(key string) string {
	best, bestDistance := "", 1+max(2, len(key)/3)
	for _, known := range keys {
		if d := editDistance(key, known); d < bestDistance {
			best, bestDistance = known, d
		}
	}
	return best
}

// editDistance is Levenshtein's: insertions, deletions and replacements of bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
