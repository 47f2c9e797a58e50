package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cri-shim/cri-shim/hack/kube/node"
)

// Addresses inside of the cluster's network namespace, which nothing outside shares.
const (
	NodeName    = "node"
	nodeAddress = "10.90.0.1"
	podRange    = "10.91.0.0/24"
	serviceCIDR = "10.96.0.0/16"
	firstIP     = "10.96.0.1" // of the service kubernetes
	dnsIP       = "10.96.0.10"
	registry    = "127.0.0.1:5000"
	apiServer   = "https://127.0.0.1:6443"
)

// Images that the cluster's own registry has.
const (
	TestImage = registry + "/kube/test:1" // busybox and hack/kube/testserver
	dnsImage  = registry + "/kube/coredns:1"
)

// users are those of the token file, with a group of each.
var users = map[string]string{
	"admin": "system:masters", "system:kube-controller-manager": "", "system:kube-scheduler": "", "system:kube-proxy": "system:node-proxier",
	"system:node:" + NodeName: "system:nodes",
}

// kubeconfigs are files with the user that they are for.
var kubeconfigs = map[string]string{
	"admin": "admin", "controller-manager": "system:kube-controller-manager", "scheduler": "system:kube-scheduler",
	"proxy": "system:kube-proxy", "kubelet": "system:node:" + NodeName,
}

func (c *Cluster) writeConfigs() error {
	for _, d := range []string{"net.d", "certs.d", "pod-logs", "kubelet", "pki", "coredns"} {
		if err := os.MkdirAll(c.path(d), 0o755); err != nil {
			return err
		}
	}
	if err := c.writeSecrets(); err != nil {
		return err
	}
	write := func(text string, elem ...string) error { return os.WriteFile(c.path(elem...), []byte(text), 0o600) }
	return errors.Join(
		node.WriteDaemonConfig(c.dir),
		write(fmt.Sprintf(networkText, c.dir, podRange), "net.d", "10-cluster.conflist"),
		write("nameserver "+nodeAddress+"\n", "resolv.conf"), // nobody answers there: names of the cluster only
		write(fmt.Sprintf(kubeletText, c.dir, nodeAddress, dnsIP), "kubelet.yaml"),
		write(fmt.Sprintf(proxyText, c.dir, NodeName, podRange, nodeAddress), "proxy.yaml"),
		write(strings.NewReplacer("IMAGE", dnsImage, "ADDRESS", dnsIP).Replace(corednsText), "coredns.yaml"),
	)
}

func (c *Cluster) writeSecrets() error {
	a, err := newAuthority(c.path("pki"))
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	err = errors.Join(
		a.server("apiserver", []string{"127.0.0.1", nodeAddress, firstIP}, "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"),
		a.server("kubelet", []string{"127.0.0.1", nodeAddress}, NodeName),
		a.client("kube-apiserver", "system:masters"), // towards the kubelet
		writeKey(c.path("pki", "service-account.key"), key),
	)
	if err != nil {
		return err
	}
	tokens := map[string]string{}
	var file strings.Builder
	for user, group := range users {
		tokens[user] = newToken()
		fmt.Fprintf(&file, "%s,%s,%s", tokens[user], user, user)
		if group != "" {
			fmt.Fprintf(&file, ",%q", group)
		}
		file.WriteByte('\n')
	}
	err = os.WriteFile(c.path("tokens.csv"), []byte(file.String()), 0o600)
	for name, user := range kubeconfigs {
		err = errors.Join(err, c.writeKubeconfig(name+".kubeconfig", apiServer, tokens[user]))
	}
	if c.outside != "" {
		err = errors.Join(err, c.writeKubeconfig("kubeconfig", "https://"+c.outside, tokens["admin"]))
	}
	return err
}

func (c *Cluster) writeKubeconfig(name, server, token string) error {
	return os.WriteFile(c.path(name), fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: cri-shim, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: user, user: {token: %s}}]
contexts: [{name: cri-shim, context: {cluster: cri-shim, user: user}}]
current-context: cri-shim
`, server, c.path("pki", "ca.crt"), token), 0o600)
}

// Pods are routed, not bridged: what one sends to another by way of a Service comes back through the node, where
// kube-proxy's rules are, without br_netfilter.
const networkText = `{"cniVersion": "1.0.0", "name": "cluster", "plugins": [
 {"type": "ptp", "ipMasq": true, "ipam": {"type": "host-local", "dataDir": "%s/ipam", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]}
`

// Defaults but for what would only make people wait; nothing is evicted on a full disk.
const kubeletText = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%[1]s/sock
podLogsDir: %[1]s/pod-logs
volumePluginDir: %[1]s/plugins
resolvConf: %[1]s/resolv.conf
address: %[2]s
healthzBindAddress: 127.0.0.1
tlsCertFile: %[1]s/pki/kubelet.crt
tlsPrivateKeyFile: %[1]s/pki/kubelet.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: %[1]s/pki/ca.crt}}
authorization: {mode: AlwaysAllow}
clusterDNS: [%[3]s]
clusterDomain: cluster.local
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
enforceNodeAllocatable: [pods]
maxPods: 250
registryPullQPS: 0
serializeImagePulls: false
crashLoopBackOff: {maxContainerRestartPeriod: 4s}
evictionHard: {memory.available: 1Mi, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%, imagefs.inodesFree: 0%%}
`

// The limits of connection tracking are the whole machine's: 0 leaves them alone.
const proxyText = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %[1]s/proxy.kubeconfig}
mode: nftables
hostnameOverride: %[2]s
clusterCIDR: %[3]s
bindAddress: %[4]s
metricsBindAddress: 127.0.0.1:10249
healthzBindAddress: 127.0.0.1:10256
nodePortAddresses: [primary]
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`

//go:embed coredns.yaml
var corednsText string
