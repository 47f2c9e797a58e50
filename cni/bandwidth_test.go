package cni

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseBandwidth(t *testing.T) {
	const in, out = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
	got, err := ParseBandwidth(map[string]string{in: "10M", out: "1Gi", "x": "y"})
	want := &Bandwidth{IngressRate: 10_000_000, IngressBurst: defaultBurst, EgressRate: 1 << 30, EgressBurst: defaultBurst}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("ParseBandwidth = %+v, %v; want %+v", got, err, want)
	}
	if got, err := ParseBandwidth(map[string]string{"x": "y"}); got != nil || err != nil {
		t.Errorf("ParseBandwidth of nothing = %v, %v; want nil, nil", got, err)
	}
	_, err = ParseBandwidth(map[string]string{out: "fast"})
	wantErr(t, "ParseBandwidth", err, out, `"fast"`)
}

func TestParseRate(t *testing.T) {
	tests := []struct {
		text string
		want uint64 // 0: an error
	}{
		{"1k", 1000}, {"1000", 1000}, {"1e3", 1000}, {"1E3", 1000}, {"+1.5k", 1500}, {".5M", 500_000}, {"12.M", 12_000_000},
		{"1P", 1e15}, {"1Ki", 1024}, {"0.5Pi", 1 << 49}, {"1000.0001", 1001}, {"1000000m", 1000}, {"1e15", 1e15},
		{"10000000000000000n", 10_000_000},
		{"999", 0}, {"0", 0}, {"-5M", 0}, {"1.1P", 0}, {"1E", 0}, {"1Ei", 0}, {"1e999999999", 0}, {"1e-999999999", 0},
		{"", 0}, {".", 0}, {"10 M", 0}, {"10m", 0}, {"10MB", 0}, {"1_000", 0}, {"0x1000", 0}, {"1e", 0}, {"1Mi3", 0}, {"inf", 0},
		{"1/1000", 0}, {"99999999999999999999999999999999999999999999999999999999999999999", 0},
	}
	for _, tt := range tests {
		got, err := parseRate(tt.text)
		if got != tt.want || (err == nil) != (tt.want != 0) {
			t.Errorf("parseRate(%q) = %d, %v; want %d", tt.text, got, err, tt.want)
		}
	}
}

func FuzzParseBandwidth(f *testing.F) {
	for _, s := range []string{"10M", "1e3", "1.5Gi", "-1", "1E", "100000m"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := ParseBandwidth(map[string]string{ingressAnnotation: s})
		if err == nil && (b.IngressRate < minRate || b.IngressRate > maxRate || b.EgressRate != 0) {
			t.Errorf("ParseBandwidth(%q) = %+v", s, b)
		}
	})
}
