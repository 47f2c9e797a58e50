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
	data, err := read(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		l.problems = append(l.problems, Problem{File: path, Reason: reason(err)})
		return
	}
	l.decode(path, data)
}

// maxFile is far more than a configuration has.
const maxFile = 4 << 20

// read reads a file that is one: a FIFO would wait for ever, and a device may have no end.
func read(path string) ([]byte, error) {
	switch fi, err := os.Stat(path); {
	case err != nil: // of which reading says so, too
	case !fi.Mode().IsRegular() && !fi.IsDir():
		return nil, errors.New("not a regular file")
	case fi.Size() > maxFile:
		return nil, fmt.Errorf("%d bytes, more than %d", fi.Size(), maxFile)
	}
	return os.ReadFile(path)
}

// reason is the error less the path, which the Problem names.
func reason(err error) string {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Op + ": " + pathError.Err.Error()
	}
	return err.Error()
}

// decode lays one file over the configuration, less the keys with problems.
func (l *loader) decode(file string, data []byte) {
	for _, key := range keys {
		if line := lineOf(data, key); line > 0 {
			l.setAt[key] = place{file, line}
		}
	}
	next := clone(l.config)
	err := decodeStrictly(data, &next)
	if err == nil {
		l.config = next
		for name := range next.Runtimes {
			if line := lineOf(data, "runtimes."+name); line > 0 {
				l.setAt["runtimes."+name] = place{file, line}
			}
		}
		return
	}
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	told := map[string]bool{}
	tell := func(p Problem) {
		l.problems = append(l.problems, p)
		told[p.Key] = true
	}
	switch {
	case errors.As(err, &unknown):
		for i := range unknown.Errors {
			tell(unknownKey(file, &unknown.Errors[i]))
		}
	case errors.As(err, &wrong):
		line, _ := wrong.Position()
		tell(Problem{file, line, strings.Join(wrong.Key(), "."), strings.TrimPrefix(wrong.Error(), "toml: ")})
	default:
		key := culprit(data)
		tell(Problem{file, lineOf(data, key), key, err.Error()})
	}
	l.decodeEach(file, data, told)
}

// decodeEach takes the keys of a file one by one, since the decoder ends at the first mistake: the others are told in the same
// run, and the values that are right are validated. Problems that were told are not told again.
func (l *loader) decodeEach(file string, data []byte, told map[string]bool) {
	var values map[string]any
	if toml.Unmarshal(data, &values) != nil {
		return // it has no keys
	}
	for _, path := range paths(values) {
		name := strings.Join(path, ".")
		value := valueAt(values, path)
		for i := len(path) - 1; i >= 0; i-- {
			value = map[string]any{path[i]: value}
		}
		alone, err := toml.Marshal(value)
		next := clone(l.config)
		if err == nil {
			err = decodeStrictly(alone, &next)
		}
		var unknown *toml.StrictMissingError
		switch {
		case err == nil && len(path) == 1:
			l.config = next
		case err == nil || told[name]:
		case errors.As(err, &unknown):
			p := unknownKey(file, &unknown.Errors[0])
			p.Line = lineIn(data, path)
			l.problems = append(l.problems, p)
		default:
			reason := strings.TrimPrefix(err.Error(), "toml: ")
			l.problems = append(l.problems, Problem{file, lineIn(data, path), name, reason})
		}
	}
}

// paths are the keys of a file in the order of their names, those of a runtime each.
func paths(values map[string]any) (all [][]string) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		runtimes, is := values[key].(map[string]any)
		if key != "runtimes" || !is {
			all = append(all, []string{key})
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(runtimes)) {
			runtime, is := runtimes[name].(map[string]any)
			if !is {
				all = append(all, []string{key, name})
			}
			for _, k := range slices.Sorted(maps.Keys(runtime)) {
				all = append(all, []string{key, name, k})
			}
		}
	}
	return all
}

func valueAt(values map[string]any, path []string) any {
	for _, key := range path[:len(path)-1] {
		values = values[key].(map[string]any) // as paths found it
	}
	return values[path[len(path)-1]]
}

// lineIn is the line of a key, or of the table that it is in.
func lineIn(data []byte, path []string) int {
	for n := len(path); n > 0; n-- {
		if line := lineOf(data, strings.Join(path[:n], ".")); line > 0 {
			return line
		}
	}
	return 0
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
