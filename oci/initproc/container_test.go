package initproc_test

import "testing"

func TestContainer(t *testing.T) {
	b := newBox(t, `hostname; id -u; pwd; echo $HOME; echo $$; ls -l /proc/self/fd`)
	t.Log(b.ok())
}
