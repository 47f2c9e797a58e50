package image

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// containerdLog makes containerd's registry client log to l: it takes a logrus logger from its context.
func containerdLog(ctx context.Context, l *slog.Logger) context.Context {
	lr := logrus.New()
	lr.SetOutput(io.Discard)
	lr.SetLevel(logrus.DebugLevel)
	lr.AddHook(slogHook{l})
	return log.WithLogger(ctx, logrus.NewEntry(lr))
}

type slogHook struct{ log *slog.Logger }

func (h slogHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h slogHook) Fire(e *logrus.Entry) error {
	// What is a warning to the client is one host or one try of several to us: the error that counts is returned.
	level := slog.LevelDebug
	if !h.log.Enabled(context.Background(), level) {
		return nil
	}
	args := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		args = append(args, k, v)
	}
	h.log.Log(context.Background(), level, "registry client: "+e.Message, args...)
	return nil
}
