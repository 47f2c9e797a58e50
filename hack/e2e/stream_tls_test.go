package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestExecTLS: crictl over TLS, on another address than loopback's first.
func TestExecTLS(t *testing.T) {
	dir := t.TempDir()
	server := httptest.NewTLSServer(nil) // for its certificate
	server.Close()
	pair := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, "key.pem": {Type: "PRIVATE KEY", Bytes: key}}
	for name, block := range files {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n := newNode(t, map[string]string{
		"stream_listen": `"[::]:0"`, "stream_tls_cert": quote(dir, "cert.pem"), "stream_tls_key": quote(dir, "key.pem"),
	})
	c := n.runPod(t).sleeping(t)
	onTransports(t, func(t *testing.T, transport string) {
		cmd := n.streamCommand(ctx(t), t, "exec", "-i", "-r", transport, c.id, "/bin/cat")
		cmd.Stdin = strings.NewReader("over TLS")
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "over TLS" {
			t.Errorf("crictl exec = %q, %v; want what was sent", out, err)
		}
	})
}
