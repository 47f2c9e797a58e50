package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/image"
)

// How often a terminal's line is written anew, and how often a line is added elsewhere.
const (
	progressRefresh = 200 * time.Millisecond
	progressLines   = 5 * time.Second
)

// showProgress tells on standard error how far the pull of ref is, until the returned function is called.
func showProgress(ctx context.Context, cmd *cli.Command, ref string) (done func()) {
	if cmd.Bool("quiet") {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() {
		_ = withAdmin(cmd, func(c *cri.AdminClient) error { // what is wrong, the pull itself will tell
			p := progressLine{w: cmd.Root().ErrWriter, terminal: isTerminal(cmd.Root().ErrWriter)}
			defer p.clear()
			return p.follow(ctx, func() ([]image.PullProgress, error) { return c.ImagePulls(ctx, ref) })
		})
	})
	return func() {
		cancel()
		work.Wait()
	}
}

// progressLine is a line on a terminal that is written over, or lines in a log.
type progressLine struct {
	w        io.Writer
	terminal bool
	shown    bool
	bytes    int64 // as of at
	at       time.Time
}

func (l *progressLine) follow(ctx context.Context, pulls func() ([]image.PullProgress, error)) error {
	every := progressLines
	if l.terminal {
		every = progressRefresh
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		going, err := pulls()
		if err != nil {
			return err
		}
		if len(going) > 0 {
			l.show(going[0], time.Now())
		}
	}
}

func (l *progressLine) show(p image.PullProgress, now time.Time) {
	text := progressText(p, l.rate(p, now))
	if l.terminal {
		l.shown = true
		fmt.Fprintf(l.w, "\r\x1b[K%s", text) // ECMA-48: erase to the end of the line
		return
	}
	fmt.Fprintln(l.w, text)
}

// rate is that of the last moments: the whole pull's says little when a mirror has become slow.
func (l *progressLine) rate(p image.PullProgress, now time.Time) int64 {
	rate := p.Rate
	if d := now.Sub(l.at).Seconds(); !l.at.IsZero() && d > 0 {
		rate = int64(float64(p.BytesDone-l.bytes) / d)
	}
	if l.at.IsZero() || now.Sub(l.at) >= time.Second {
		l.bytes, l.at = p.BytesDone, now
	}
	return max(rate, 0)
}

func (l *progressLine) clear() {
	if l.shown {
		fmt.Fprint(l.w, "\r\x1b[K")
	}
}

func progressText(p image.PullProgress, rate int64) string {
	text := p.Reference + ": "
	switch {
	case p.Layers == 0:
		return text + "asking the registry"
	case p.Stage != "layers":
		return text + p.Stage
	}
	text += fmt.Sprintf("%d of %d layers", p.Done, p.Layers)
	if p.Bytes > 0 {
		text += fmt.Sprintf(", %s of %s, %s/s", size(uint64(p.BytesDone)), size(uint64(p.Bytes)), size(uint64(rate)))
	}
	if p.Host != "" {
		text += " from " + p.Host
	}
	return text
}
