package kubelet

import (
	"errors"
	"fmt"
	"os"

	parts "github.com/cri-shim/cri-shim/hack/kube/node"
)

func (n *node) writeConfigs() error {
	var errs []error
	write := func(text string, elem ...string) {
		errs = append(errs, os.WriteFile(n.path(elem...), []byte(text), 0o644))
	}
	errs = append(errs, parts.WriteDaemonConfig(n.dir))
	write(fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "kubelet", "plugins": [
 {"type": "bridge", "bridge": "kubelet0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": "%s/ipam", "ranges": [[{"subnet": "10.89.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]}
`, n.dir), "net.d", "10-kubelet.conflist")
	write("nameserver 127.0.0.1\n", "resolv.conf")
	write(fmt.Sprintf(kubeletText, n.dir), "kubelet.yaml")
	return errors.Join(errs...)
}

// Fractions of the defaults where those would only make the tests wait; nothing is evicted on a full disk.
const kubeletText = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%[1]s/sock
staticPodPath: %[1]s/manifests
podLogsDir: %[1]s/pod-logs
volumePluginDir: %[1]s/plugins
resolvConf: %[1]s/resolv.conf
address: 127.0.0.1
healthzBindAddress: 127.0.0.1
readOnlyPort: 10255
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
localStorageCapacityIsolation: true
enforceNodeAllocatable: [pods]
maxPods: 250
registryPullQPS: 0
eventRecordQPS: 0
serializeImagePulls: false
syncFrequency: 5s
fileCheckFrequency: 1s
volumeStatsAggPeriod: 5s
containerLogMaxSize: 64Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
imageMinimumGCAge: 1s
imageMaximumGCAge: 30s
crashLoopBackOff: {maxContainerRestartPeriod: 4s}
evictionHard: {memory.available: 1Mi, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%, imagefs.inodesFree: 0%%}
`
