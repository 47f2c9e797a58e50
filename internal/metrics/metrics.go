// Package metrics counts, and writes what it has counted in Prometheus' text format. It is small on purpose: the daemon
// is idle most of its life, and a library that keeps a registry, descriptors and goroutines costs more memory than all
// counters together.
package metrics

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Kinds of metrics, as the text format names them.
const (
	Counter   = "counter"
	Gauge     = "gauge"
	histogram = "histogram"
)

// Set is a list of metrics, written in the order in which they were added.
type Set struct {
	mu       sync.Mutex
	families []family
}

type family interface {
	write(w *bufio.Writer)
	describe() Description
}

func (s *Set) add(f family) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.families = append(s.families, f)
}

// Write writes all metrics.
func (s *Set) Write(w io.Writer) error {
	s.mu.Lock()
	families := slices.Clone(s.families)
	s.mu.Unlock()
	b := bufio.NewWriter(w)
	for _, f := range families {
		f.write(b)
	}
	return b.Flush()
}

// Sample is a value of a metric whose values are found out when they are asked for; Labels are those of the metric, in their
// order.
type Sample struct {
	Labels []string
	Value  float64
}

// head is what all kinds of metrics have.
type head struct {
	name, help, kind string
	labels           []string
}

func (h *head) writeHead(w *bufio.Writer) {
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", h.name, escape(h.help, false), h.name, h.kind)
}

func (h *head) writeSample(w *bufio.Writer, suffix string, values []string, extra, extraValue string, v float64) {
	w.WriteString(h.name)
	w.WriteString(suffix)
	sep := byte('{')
	pair := func(name, value string) {
		w.WriteByte(sep)
		fmt.Fprintf(w, `%s="%s"`, name, escape(value, true))
		sep = ','
	}
	for i, l := range h.labels {
		pair(l, values[i])
	}
	if extra != "" {
		pair(extra, extraValue)
	}
	if sep == ',' {
		w.WriteByte('}')
	}
	w.WriteByte(' ')
	w.WriteString(format(v))
	w.WriteByte('\n')
}

func format(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// escape as the text format wants it; a help text may have quotes.
func escape(s string, quotes bool) string {
	s = strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), "\n", `\n`)
	if quotes {
		s = strings.ReplaceAll(s, `"`, `\"`)
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// Func adds a metric of that kind whose values f finds out.
func (s *Set) Func(name, kind, help string, labels []string, f func() []Sample) {
	s.add(&funcs{head{name, help, kind, labels}, f})
}

// Value adds a metric of that kind with one value.
func (s *Set) Value(name, kind, help string, f func() float64) {
	s.Func(name, kind, help, nil, func() []Sample { return []Sample{{Value: f()}} })
}

type funcs struct {
	head
	f func() []Sample
}

func (f *funcs) write(w *bufio.Writer) {
	f.writeHead(w)
	for _, v := range f.f() {
		f.writeSample(w, "", v.Labels, "", "", v.Value)
	}
}

// Counts is a counter for each combination of labels.
type Counts struct {
	head
	mu sync.Mutex
	m  map[string]float64
}

// labelSep cannot be part of a label's value: those are text.
const labelSep = "\xff"

// Counts adds a counter with labels.
func (s *Set) Counts(name, help string, labels ...string) *Counts {
	c := &Counts{head: head{name, help, Counter, labels}, m: map[string]float64{}}
	s.add(c)
	return c
}

// Add counts n more. A nil counter counts nothing.
func (c *Counts) Add(n float64, labels ...string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m[strings.Join(labels, labelSep)] += n
}

func (c *Counts) write(w *bufio.Writer) {
	c.mu.Lock()
	all := maps.Clone(c.m)
	c.mu.Unlock()
	c.writeHead(w)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		c.writeSample(w, "", strings.Split(key, labelSep), "", "", all[key])
	}
}

// Histogram counts how long things take, for each combination of labels.
type Histogram struct {
	head
	bounds []float64 // upper ones, in seconds
	mu     sync.Mutex
	m      map[string]*buckets
}

type buckets struct {
	counts []uint32 // by bound, and one for what is above them all
	sum    float64
}

// Histogram adds a histogram of seconds.
func (s *Set) Histogram(name, help string, bounds []float64, labels ...string) *Histogram {
	h := &Histogram{head: head{name, help, histogram, labels}, bounds: bounds, m: map[string]*buckets{}}
	s.add(h)
	return h
}

// Observe counts one thing that took so many seconds. A nil histogram counts nothing.
func (h *Histogram) Observe(seconds float64, labels ...string) {
	if h == nil {
		return
	}
	key := strings.Join(labels, labelSep)
	i, _ := slices.BinarySearch(h.bounds, seconds)
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.m[key]
	if b == nil {
		b = &buckets{counts: make([]uint32, len(h.bounds)+1)}
		h.m[key] = b
	}
	b.counts[i]++
	b.sum += seconds
}

func (h *Histogram) write(w *bufio.Writer) {
	h.writeHead(w)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(h.m)) {
		b, labels, total := h.m[key], []string(nil), uint64(0)
		if len(h.labels) > 0 {
			labels = strings.Split(key, labelSep)
		}
		for i, n := range b.counts {
			total += uint64(n)
			le := "+Inf"
			if i < len(h.bounds) {
				le = format(h.bounds[i])
			}
			h.writeSample(w, "_bucket", labels, "le", le, float64(total))
		}
		h.writeSample(w, "_sum", labels, "", "", b.sum)
		h.writeSample(w, "_count", labels, "", "", float64(total))
	}
}

// Description is what a metric is.
type Description struct {
	Name, Kind string
	Labels     []string
}

func (h *head) describe() Description { return Description{h.name, h.kind, h.labels} }

// Describe lists the metrics.
func (s *Set) Describe() []Description {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Description
	for _, f := range s.families {
		all = append(all, f.describe())
	}
	return all
}
