package cni

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strconv"
)

// The pod annotations for traffic shaping, and the bounds that Kubernetes sets them.
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"

	minRate = 1000             // 1k bit/s
	maxRate = 1000000000000000 // 1P bit/s
)

// defaultBurst is what containerd and CRI-O pass with a rate: the annotations have none, the bandwidth plugin
// wants one, and it fits the kernel's 32 bits.
const defaultBurst = math.MaxUint32

// Bandwidth limits a pod's traffic as the bandwidth plugin takes it: rates in bits per second, bursts in bits,
// zero for no limit. A direction has both or none.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// ParseBandwidth reads the annotations kubernetes.io/ingress-bandwidth and egress-bandwidth: Kubernetes
// quantities in bits per second between 1k and 1P. It is nil without either; an error names the
// annotation.
func ParseBandwidth(annotations map[string]string) (*Bandwidth, error) {
	var b Bandwidth
	for _, d := range []struct {
		key         string
		rate, burst *uint64
	}{
		{ingressAnnotation, &b.IngressRate, &b.IngressBurst},
		{egressAnnotation, &b.EgressRate, &b.EgressBurst},
	} {
		text, ok := annotations[d.key]
		if !ok {
			continue
		}
		rate, err := parseRate(text)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", d.key, err)
		}
		*d.rate, *d.burst = rate, defaultBurst
	}
	if b == (Bandwidth{}) {
		return nil, nil
	}
	return &b, nil
}

// quantity is the grammar of k8s.io/apimachinery's resource.Quantity.
var quantity = regexp.MustCompile(`^([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?[0-9]{1,9}))?$`)

var binaryExp = map[string]int{"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}

var decimalExp = map[string]int{"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}

// parseRate reads a quantity, rounded up to a whole number, within minRate and maxRate.
func parseRate(text string) (uint64, error) {
	// Long before this length a number is out of the bounds, or finer than any rate.
	m := quantity.FindStringSubmatch(text)
	if m == nil || len(text) > 64 {
		return 0, fmt.Errorf("%.64q is not a quantity such as 10M", text)
	}
	v, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return 0, fmt.Errorf("%q is not a number", m[1])
	}
	exp := decimalExp[m[3]]
	if m[4] != "" {
		e, err := strconv.Atoi(m[4])
		if err != nil {
			return 0, fmt.Errorf("%q: exponent: %w", text, err)
		}
		exp = min(max(e, -100), 100) // with 64 digits at most, beyond this nothing is within the bounds
	}
	scale := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(exp, -exp))), nil))
	if exp < 0 {
		scale.Inv(scale)
	}
	v.Mul(v, scale)
	v.Mul(v, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), uint(binaryExp[m[2]]))))
	if v.Cmp(big.NewRat(minRate, 1)) < 0 {
		return 0, fmt.Errorf("%q is below 1k bit/s", text)
	}
	if v.Cmp(big.NewRat(maxRate, 1)) > 0 {
		return 0, fmt.Errorf("%q is above 1P bit/s", text)
	}
	up := new(big.Int).Add(v.Num(), new(big.Int).Sub(v.Denom(), big.NewInt(1)))
	return up.Quo(up, v.Denom()).Uint64(), nil
}
