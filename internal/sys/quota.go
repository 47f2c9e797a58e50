package sys

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/fs.h and linux/quota.h; package unix does not have them.
const (
	fsIocFsgetxattr    = 0x801c581f // FS_IOC_FSGETXATTR
	fsIocFssetxattr    = 0x401c5820 // FS_IOC_FSSETXATTR
	fsXflagProjinherit = 0x200      // FS_XFLAG_PROJINHERIT

	quotaProject   = 2 // PRJQUOTA
	sysQuotactlFd  = unix.SYS_QUOTACTL_FD
	qGetquota      = 0x800007
	qSetquota      = 0x800008
	qGetnextquota  = 0x800009
	qXgetqstat     = 'X'<<8 + 5 // Q_XGETQSTAT, which ext4 answers too
	qifBlimits     = 1          // QIF_BLIMITS
	qifIlimits     = 4          // QIF_ILIMITS
	quotaBlock     = 1024       // QIF_DQBLKSIZE: the unit of limits
	fsQuotaPdqAcct = 1 << 4     // FS_QUOTA_PDQ_ACCT
	fsQuotaPdqEnfd = 1 << 5     // FS_QUOTA_PDQ_ENFD
)

// fsxattr is struct fsxattr.
type fsxattr struct {
	xflags, extsize, nextents, projid, cowextsize uint32
	pad                                           [8]byte
}

// dqblk is struct if_nextdqblk, which begins with struct if_dqblk.
type dqblk struct {
	bhardlimit, bsoftlimit, curspace, ihardlimit, isoftlimit, curinodes, btime, itime uint64
	valid, id                                                                         uint32
}

// fsQuotaStat is struct fs_quota_stat; only the flags are read.
type fsQuotaStat struct {
	version int8
	flags   uint16
	_       [76]byte
}

// ProjectUsage is what a project takes on a file system, and may take; a limit of 0 is none.
type ProjectUsage struct {
	Bytes, Inodes       uint64
	MaxBytes, MaxInodes uint64
}

// NoProjectQuotaError says why directories cannot be limited on a file system. It matches errors.ErrUnsupported.
type NoProjectQuotaError struct{ Path, Reason string }

func (e *NoProjectQuotaError) Error() string {
	return fmt.Sprintf("no project quotas on the file system of %s: %s", e.Path, e.Reason)
}

// Is makes it match errors.ErrUnsupported.
func (e *NoProjectQuotaError) Is(target error) bool { return target == errors.ErrUnsupported }

// ProjectQuotas is nil if projects are accounted and limited on the file system that dir is on: XFS mounted with pquota,
// ext4 made with -O project,quota and mounted with prjquota. It asks by quotactl_fd (Linux 5.14).
func ProjectQuotas(dir *os.File) error {
	no := func(reason string) error { return &NoProjectQuotaError{dir.Name(), reason} }
	var st fsQuotaStat
	err := quotactlFd(dir, qXgetqstat, 0, unsafe.Pointer(&st))
	switch {
	case errors.Is(err, unix.ENOSYS) && !hasQuotactlFd():
		return no("the kernel has no quotactl_fd (Linux 5.14, CONFIG_QUOTACTL)")
	case err != nil || st.flags&fsQuotaPdqAcct == 0:
		return no("it is not mounted with prjquota (ext4, made with -O project,quota) or pquota (xfs), or the kernel lacks quotas")
	case st.flags&fsQuotaPdqEnfd == 0:
		return no("projects are counted but not limited: mount it with prjquota (ext4) or pquota (xfs)")
	}
	return nil
}

// hasQuotactlFd tells a kernel without the call from a file system without quotas: only the former does not look at the
// descriptor.
func hasQuotactlFd() bool {
	_, _, errno := unix.Syscall6(sysQuotactlFd, ^uintptr(0), quotaCommand(qXgetqstat), 0, 0, 0, 0)
	return errno != unix.ENOSYS
}

func quotaCommand(cmd uint32) uintptr { return uintptr(cmd<<8 | quotaProject) }

func quotactlFd(dir *os.File, cmd, id uint32, arg unsafe.Pointer) error {
	return noEINTR(func() error {
		_, _, errno := unix.Syscall6(sysQuotactlFd, dir.Fd(), quotaCommand(cmd), uintptr(id), uintptr(arg), 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
}

// Project is the project that an open file or directory belongs to; 0 is the one of everything else.
func Project(f *os.File) (uint32, error) {
	x, err := getFsxattr(f)
	return x.projid, err
}

func getFsxattr(f *os.File) (fsxattr, error) {
	var x fsxattr
	return x, fsIoctl(f, fsIocFsgetxattr, &x)
}

func fsIoctl(f *os.File, request uintptr, x *fsxattr) error {
	err := noEINTR(func() error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(x))); errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return &os.PathError{Op: "project of", Path: f.Name(), Err: err}
	}
	return nil
}

// SetProject makes an empty directory, and whatever will be made in it, part of a project.
func SetProject(dir *os.File, id uint32) error {
	x, err := getFsxattr(dir)
	if err != nil {
		return err
	}
	x.projid = id
	x.xflags |= fsXflagProjinherit
	return fsIoctl(dir, fsIocFssetxattr, &x)
}

// ProjectQuota tells what a project takes on the file system of dir.
func ProjectQuota(dir *os.File, id uint32) (ProjectUsage, error) {
	var q dqblk
	err := quotactlFd(dir, qGetquota, id, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) { // xfs: nobody has used it
		return ProjectUsage{}, nil
	}
	if err != nil {
		return ProjectUsage{}, fmt.Errorf("quota of project %d on %s: %w", id, dir.Name(), err)
	}
	return q.usage(), nil
}

func (q *dqblk) usage() ProjectUsage {
	return ProjectUsage{
		Bytes: q.curspace, Inodes: q.curinodes, MaxBytes: q.bhardlimit * quotaBlock, MaxInodes: q.ihardlimit,
	}
}

// NextProject finds the project with the lowest number from id on that the file system of dir has a quota for; false is
// none.
func NextProject(dir *os.File, id uint32) (next uint32, u ProjectUsage, ok bool, err error) {
	var q dqblk
	err = quotactlFd(dir, qGetnextquota, id, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return 0, u, false, nil
	}
	if err != nil {
		return 0, u, false, fmt.Errorf("quotas of projects on %s: %w", dir.Name(), err)
	}
	return q.id, q.usage(), true, nil
}

// SetProjectLimit limits the bytes of a project, rounded up to a KiB, and its inodes; 0 is no limit.
func SetProjectLimit(dir *os.File, id uint32, bytes, inodes uint64) error {
	blocks := bytes / quotaBlock
	if bytes%quotaBlock != 0 {
		blocks++
	}
	q := dqblk{
		bhardlimit: blocks, bsoftlimit: blocks, ihardlimit: inodes, isoftlimit: inodes, valid: qifBlimits | qifIlimits,
	}
	if err := quotactlFd(dir, qSetquota, id, unsafe.Pointer(&q)); err != nil {
		return fmt.Errorf("limit project %d on %s to %d bytes, %d inodes: %w", id, dir.Name(), bytes, inodes, err)
	}
	return nil
}
