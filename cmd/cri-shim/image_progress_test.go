package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/image"
)

func TestProgressText(t *testing.T) {
	begin := time.Unix(1000, 0)
	l := progressLine{}
	for _, tt := range []struct {
		at   time.Duration
		p    image.PullProgress
		want string
	}{
		{0, image.PullProgress{Reference: "r", Stage: "resolve"}, "r: asking the registry"},
		{0, image.PullProgress{Reference: "r", Stage: "layers", Layers: 3, Done: 1, Bytes: 5e6, BytesDone: 1e6, Rate: 2e6, Host: "m"},
			"r: 1 of 3 layers, 1.0 MB of 5.0 MB, 2.0 MB/s from m"},
		{2 * time.Second, image.PullProgress{Reference: "r", Stage: "layers", Layers: 3, Done: 2, Bytes: 5e6, BytesDone: 4e6, Rate: 9e6, Host: "m"},
			"r: 2 of 3 layers, 4.0 MB of 5.0 MB, 2.0 MB/s from m"},
		{3 * time.Second, image.PullProgress{Reference: "r", Stage: "commit", Layers: 3, Done: 3}, "r: commit"},
	} {
		var out bytes.Buffer
		l.w = &out
		l.show(tt.p, begin.Add(tt.at))
		if got := strings.TrimSuffix(out.String(), "\n"); got != tt.want {
			t.Errorf("at %v: %q; want %q", tt.at, got, tt.want)
		}
	}
	var out bytes.Buffer
	l = progressLine{w: &out, terminal: true}
	ctx, cancel := context.WithCancel(t.Context())
	err := l.follow(ctx, func() ([]image.PullProgress, error) {
		cancel()
		return []image.PullProgress{{Reference: "r"}}, nil
	})
	l.clear()
	if err != nil || !strings.HasPrefix(out.String(), "\r\x1b[Kr: asking") || !strings.HasSuffix(out.String(), "\r\x1b[K") {
		t.Errorf("on a terminal: %q, %v; want a line that is cleared", out.String(), err)
	}
}
