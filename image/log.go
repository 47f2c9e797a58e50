package image

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// quietContainerd keeps containerd's packages from writing to standard error what they log without a context: only
// that a file system lacks fsverity.
var quietContainerd = sync.OnceFunc(func() { log.L.Logger.SetOutput(io.Discard) })

// containerdLog makes containerd's registry client log to l: it takes a logrus logger from its context.
func containerdLog(ctx context.Context, l *slog.Logger) context.Context {
	quietContainerd()
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
		if isLogged(k) {
			args = append(args, k, withoutQueries(fmt.Sprint(v)))
		}
	}
	h.log.Log(context.Background(), level, "registry client: "+withoutQueries(e.Message), args...)
	return nil
}

// loggedHeaders are those that tell something and can hold no secret. The client would log all but Authorization,
// and hosts.toml may name any header for a key.
var loggedHeaders = map[string]bool{
	"accept": true, "range": true, "content-length": true, "content-range": true, "content-type": true, "date": true,
	"docker-content-digest": true, "retry-after": true, "server": true, "warning": true, "www-authenticate": true,
}

func isLogged(key string) bool {
	for _, kind := range []string{"request.header.", "response.header."} {
		if header, ok := strings.CutPrefix(key, kind); ok {
			header, _, _ = strings.Cut(header, ".") // a number, where it was sent more than once
			return loggedHeaders[header]
		}
	}
	return key != "body" // of a token server's answer
}
