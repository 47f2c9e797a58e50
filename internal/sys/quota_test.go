package sys

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"
)

// TestQuotaEncoding compares numbers and layouts with the kernel's headers, as a compiler sees them.
func TestQuotaEncoding(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler (cc)")
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "q.c")
	err = os.WriteFile(source, []byte(`
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <linux/fs.h>
#include <linux/quota.h>
#include <linux/dqblk_xfs.h>
int main(void) {
	printf("%lx %lx %x\n", (unsigned long)FS_IOC_FSGETXATTR, (unsigned long)FS_IOC_FSSETXATTR, FS_XFLAG_PROJINHERIT);
	printf("%zu %zu %zu\n", sizeof(struct fsxattr), offsetof(struct fsxattr, fsx_xflags), offsetof(struct fsxattr, fsx_projid));
	printf("%x %x %x %x %x\n", Q_GETQUOTA, Q_SETQUOTA, Q_GETNEXTQUOTA, Q_XGETQSTAT, QCMD(Q_GETQUOTA, PRJQUOTA));
	printf("%d %d %d %d %d\n", QIF_BLIMITS, QIF_ILIMITS, QIF_DQBLKSIZE, FS_QUOTA_PDQ_ACCT, FS_QUOTA_PDQ_ENFD);
	printf("%zu %zu %zu %zu %zu %zu %zu %zu\n", sizeof(struct if_nextdqblk), offsetof(struct if_nextdqblk, dqb_bhardlimit),
		offsetof(struct if_nextdqblk, dqb_curspace), offsetof(struct if_nextdqblk, dqb_ihardlimit), offsetof(struct if_nextdqblk, dqb_curinodes),
		offsetof(struct if_nextdqblk, dqb_valid), offsetof(struct if_nextdqblk, dqb_id), offsetof(struct if_dqblk, dqb_valid));
	printf("%zu %zu\n", sizeof(struct fs_quota_stat), offsetof(struct fs_quota_stat, qs_flags));
	printf("%d\n", SYS_quotactl_fd);
}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "q")
	if out, err := exec.Command(cc, "-o", program, source).CombinedOutput(); err != nil {
		t.Skipf("the kernel's headers (linux-libc-dev): %v: %s", err, out)
	}
	want, err := exec.Command(program).Output()
	if err != nil {
		t.Fatal(err)
	}
	var x fsxattr
	var q dqblk
	var s fsQuotaStat
	got := fmt.Sprintf("%x %x %x\n", fsIocFsgetxattr, fsIocFssetxattr, fsXflagProjinherit) +
		fmt.Sprintf("%d %d %d\n", unsafe.Sizeof(x), unsafe.Offsetof(x.xflags), unsafe.Offsetof(x.projid)) +
		fmt.Sprintf("%x %x %x %x %x\n", qGetquota, qSetquota, qGetnextquota, qXgetqstat, uint32(quotaCommand(qGetquota))) +
		fmt.Sprintf("%d %d %d %d %d\n", qifBlimits, qifIlimits, quotaBlock, fsQuotaPdqAcct, fsQuotaPdqEnfd) +
		fmt.Sprintf("%d %d %d %d %d %d %d %d\n", unsafe.Sizeof(q), unsafe.Offsetof(q.bhardlimit), unsafe.Offsetof(q.curspace),
			unsafe.Offsetof(q.ihardlimit), unsafe.Offsetof(q.curinodes), unsafe.Offsetof(q.valid), unsafe.Offsetof(q.id), unsafe.Offsetof(q.valid)) +
		fmt.Sprintf("%d %d\n", unsafe.Sizeof(s), unsafe.Offsetof(s.flags)) +
		fmt.Sprintf("%d\n", sysQuotactlFd)
	if got != string(want) {
		t.Errorf("this package has\n%s; the headers say\n%s", got, want)
	}
}

// TestNoProjectQuotas: a file system that has none is one that says so.
func TestNoProjectQuotas(t *testing.T) {
	dir, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	no, ok := ProjectQuotas(dir).(*NoProjectQuotaError)
	if !ok || no.Path != "/proc" || no.Reason == "" {
		t.Errorf("ProjectQuotas(/proc) = %v; want that it has none, and why", no)
	}
}

func TestCopyFile(t *testing.T) {
	const size = 3<<20 + 17
	dir := t.TempDir()
	src, err := os.Create(filepath.Join(dir, "src"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for _, at := range []int64{0, 1 << 20, size - 4} {
		if _, err := src.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(src.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, reflink := range []bool{true, false} {
		dst, err := os.Create(filepath.Join(dir, fmt.Sprint("dst", reflink)))
		if err != nil {
			t.Fatal(err)
		}
		defer dst.Close()
		shared, err := CopyFile(int(dst.Fd()), int(src.Fd()), size, reflink)
		if err != nil || shared && !reflink {
			t.Fatalf("CopyFile(reflink %v) = %v, %v", reflink, shared, err)
		}
		if got, err := os.ReadFile(dst.Name()); err != nil || string(got) != string(want) {
			t.Errorf("reflink %v: the copy has %d bytes, %v; want the same %d", reflink, len(got), err, len(want))
		}
		fi, err := Lstatat(-100, dst.Name())
		if err != nil || fi.Blocks*512 > 1<<20 {
			t.Errorf("reflink %v: the copy takes %d bytes, %v; want its holes kept", reflink, fi.Blocks*512, err)
		}
	}
	if err := copyBytes(-1, int(src.Fd()), 0, 1); err == nil {
		t.Error("copyBytes to nowhere = nil; want an error")
	}
	// Through the buffer, as where the kernel cannot copy.
	dst, err := os.Create(filepath.Join(dir, "bytes"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := copyBytes(int(dst.Fd()), int(src.Fd()), 0, size); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dst.Name()); err != nil || string(got) != string(want) {
		t.Errorf("copyBytes gave %d bytes, %v; want the same %d", len(got), err, len(want))
	}
}
