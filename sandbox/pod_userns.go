package sandbox

import (
	"os"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
)

// userNamespace is what the client asked for, nil where the pod is in the node's.
func userNamespace(p *Pod) *workload.UserNamespace {
	return podUser(p.Config.Security.Namespaces.User)
}

func podUser(u *workload.UserNamespace) *workload.UserNamespace {
	if u == nil || u.Mode != workload.ModePod {
		return nil
	}
	return u
}

func idMaps(in []workload.IDMapping) []sys.IDMap {
	out := make([]sys.IDMap, len(in))
	for i, m := range in {
		out[i] = sys.IDMap{Inside: m.ContainerID, Outside: m.HostID, Size: m.Length}
	}
	return out
}

// podRoot is who the root of the pod's user namespace is on the node; ok is false where the pod has none.
func podRoot(p *Pod) (uid, gid uint32, ok bool) {
	u := userNamespace(p)
	if u == nil {
		return 0, 0, false
	}
	return rootOf(u.UIDs), rootOf(u.GIDs), true
}

func rootOf(ids []workload.IDMapping) uint32 {
	for _, m := range ids {
		if m.ContainerID == 0 {
			return m.HostID
		}
	}
	return 0 // the CRI's checks let no such mapping through
}

// chownPodRoot gives what the runtime itself has made for a pod to the root of its user namespace.
func chownPodRoot(p *Pod, path string) error {
	uid, gid, ok := podRoot(p)
	if !ok {
		return nil
	}
	return os.Lchown(path, int(uid), int(gid))
}
