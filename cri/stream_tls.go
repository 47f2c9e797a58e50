package cri

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificate is one in files that may be replaced while the daemon runs.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu     sync.Mutex
	loaded *tls.Certificate
	stamps [2]fileStamp
}

type fileStamp struct {
	modified time.Time
	size     int64
}

// get returns the certificate that the files hold. While they cannot be used, as in the middle of a change, it is the one before.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stamps, err := c.stat()
	if err == nil && c.loaded != nil && stamps == c.stamps {
		return c.loaded, nil
	}
	var loaded tls.Certificate
	if err == nil {
		loaded, err = tls.LoadX509KeyPair(c.certFile, c.keyFile)
	}
	if err != nil {
		err = fmt.Errorf("certificate %s with key %s: %w", c.certFile, c.keyFile, err)
		if c.loaded == nil {
			return nil, err
		}
		c.log.Warn("streaming server goes on with the certificate it has", "err", err)
		return c.loaded, nil
	}
	c.loaded, c.stamps = &loaded, stamps
	return c.loaded, nil
}

func (c *certificate) stat() (stamps [2]fileStamp, err error) {
	for i, path := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(path)
		if err != nil {
			return stamps, err
		}
		stamps[i] = fileStamp{info.ModTime(), info.Size()}
	}
	return stamps, nil
}
