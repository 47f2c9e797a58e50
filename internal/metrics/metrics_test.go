package metrics

import (
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWrite(t *testing.T) {
	var s Set
	c := s.Counts("a_total", "Counts\nwith a \\ and a \"quote\".", "op", "code")
	c.Add(1, "x", "OK")
	c.Add(2, "x", "OK")
	c.Add(0.5, "bad \"\n\\ \xff"[:8], "no")
	s.Value("b", Gauge, "One value.", func() float64 { return 1.25 })
	h := s.Histogram("c_seconds", "Times.", []float64{0.1, 1}, "op")
	for _, v := range []float64{0.05, 0.1, 0.5, 7} {
		h.Observe(v, "x")
	}
	plain := s.Histogram("d_seconds", "Without labels.", []float64{1})
	plain.Observe(2)
	s.Func("e", Gauge, "Found out.", []string{"state"}, func() []Sample { return []Sample{{[]string{"up"}, 1 << 40}} })
	var b strings.Builder
	if err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	want := `# HELP a_total Counts\nwith a \\ and a "quote".
# TYPE a_total counter
a_total{op="bad \"\n\\ ",code="no"} 0.5
a_total{op="x",code="OK"} 3
# HELP b One value.
# TYPE b gauge
b 1.25
# HELP c_seconds Times.
# TYPE c_seconds histogram
c_seconds_bucket{op="x",le="0.1"} 2
c_seconds_bucket{op="x",le="1"} 3
c_seconds_bucket{op="x",le="+Inf"} 4
c_seconds_sum{op="x"} 7.65
c_seconds_count{op="x"} 4
# HELP d_seconds Without labels.
# TYPE d_seconds histogram
d_seconds_bucket{le="1"} 0
d_seconds_bucket{le="+Inf"} 1
d_seconds_sum 2
d_seconds_count 1
# HELP e Found out.
# TYPE e gauge
e{state="up"} 1099511627776
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("Write (-want +got):\n%s", diff)
	}
}

// TestConcurrent is for the race detector; nil metrics count nothing.
func TestConcurrent(t *testing.T) {
	var s Set
	c, h := s.Counts("c", "C."), s.Histogram("h", "H.", []float64{1})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				c.Add(1)
				h.Observe(0.5)
				var b strings.Builder
				if err := s.Write(&b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var b strings.Builder
	if err := s.Write(&b); err != nil || !strings.Contains(b.String(), "\nc 800\n") || !strings.Contains(b.String(), "\nh_count 800\n") {
		t.Errorf("Write = %v:\n%s; want 800 of each", err, &b)
	}
	(*Counts)(nil).Add(1)
	(*Histogram)(nil).Observe(1)
}
