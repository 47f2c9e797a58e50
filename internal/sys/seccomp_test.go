package sys

import "testing"

func TestSeccompFlagsSupported(t *testing.T) {
	if SeccompFlagsSupported(1 << 30) {
		t.Error("SeccompFlagsSupported(1<<30) = true; want false")
	}
}
