// Package config is the daemon's configuration: one flat struct, its defaults in one function, checked
// once. It is read from TOML; see Load.
package config

import "time"

// Config holds every setting. The doc tag is the key's documentation, which Render prints above it.
type Config struct {
	Root   string `toml:"root" doc:"Images, container file systems and records; survives a reboot."`
	State  string `toml:"state" doc:"What only matters while the kernel is up: sockets, exit files, namespaces. On a tmpfs."`
	Listen string `toml:"listen" doc:"Unix socket of the CRI; what the kubelet's containerRuntimeEndpoint names, after unix://."`

	LogLevel  string `toml:"log_level" doc:"debug, info, warn or error."`
	LogFormat string `toml:"log_format" doc:"text or json."`

	PodsPerSupervisor int    `toml:"pods_per_supervisor" doc:"Pods that share a supervisor process. 1 gives each pod its own: more memory, and the loss of one supervisor touches one pod."`
	SupervisorCgroup  string `toml:"supervisor_cgroup" doc:"Cgroup of the supervisors, from the root of the hierarchy. Never the daemon's own: a restart of the service must leave pods alone."`
	CgroupDriver      string `toml:"cgroup_driver" doc:"Who makes the cgroups of pods, which must be the kubelet's cgroupDriver: cgroupfs, or systemd (cgroup v2 and systemd 244). A kubelet that asks the runtime is told; where systemd is PID 1, systemd is what Kubernetes recommends."`

	CNIConfDir string   `toml:"cni_conf_dir" doc:"CNI configuration lists; the first in name order is the pod network."`
	CNIBinDirs []string `toml:"cni_bin_dirs" doc:"Where CNI plugins are looked for, in this order."`
	CNITimeout Duration `toml:"cni_timeout" doc:"For one CNI operation with all of its plugins; then they are killed."`
	NetnsDir   string   `toml:"netns_dir" doc:"Where the pods' network namespaces are pinned; ip netns and CNI plugins expect /run/netns."`

	RegistryConfigDirs     []string `toml:"registry_config_dirs" doc:"Folders with one folder per registry host, each with a hosts.toml and certificates, as containerd has them. The first that knows a host counts; folders that do not exist are skipped."`
	RegistryAuthFiles      []string `toml:"registry_auth_files" doc:"Files in the format of docker's config.json, or folders with such files (*.json), with credentials for registries and mirrors. What the kubelet sends comes first. Read at each pull; those that do not exist are skipped."`
	MaxConcurrentDownloads int      `toml:"max_concurrent_downloads" doc:"Layers that are downloaded and unpacked at a time, over all pulls."`
	PullProgressTimeout    Duration `toml:"pull_progress_timeout" doc:"A registry that sends no byte for this long is asked again, or the next mirror is, from where it stopped; after four times in a row the pull fails."`
	KeepBlobs              bool     `toml:"keep_blobs" doc:"Keep the compressed blobs of layers as well, as long as an image needs them: a damaged layer can be made again without its registry. Takes about a third more of the disk."`
	GzipProgram            string   `toml:"gzip_program" doc:"Program that decompresses gzip from standard input to standard output with -dc, run as nobody. auto: igzip where it is installed, which takes a third of the CPU time; none: the built-in decompressor."`
	MaxLayerSize           Size     `toml:"max_layer_size" doc:"What a layer may take uncompressed; a larger one fails the pull, so that a small download cannot fill the disk."`
	MaxLayerEntries        int64    `toml:"max_layer_entries" doc:"Files, directories and links that a layer may have."`
	PinnedImages           []string `toml:"pinned_images" doc:"Images that the kubelet's garbage collection leaves alone. A * at the end of a full name, as in docker.io/library/*, stands for any rest."`
	ImageVerifierDir       string   `toml:"image_verifier_dir" doc:"Folder of programs that approve images, called as containerd calls its image verifiers: at pull, import and tag, and before a container is made of an image that these programs have not approved. All must approve; without a program in it nothing is. Empty: every image is allowed."`
	ImageVerifierTimeout   Duration `toml:"image_verifier_timeout" doc:"For one call of one of these programs; then it is killed, and the image is denied."`
	SignaturePolicy        string   `toml:"signature_policy" doc:"Whose signatures images need: a file as in containers-policy.json(5), such as /etc/containers/policy.json; sigstore (cosign, with bundles) and simple signing. Asked at pull, import and tag, and before a container is made if it or a key has changed since. Empty: none."`
	SignatureSourcesDir    string   `toml:"signature_sources_dir" doc:"Folder that says where signatures are kept, as in containers-registries.d(5): lookaside, use-sigstore-attachments; and bundles-by-digest, for cosign 3, which signs no names."`
	DecryptionKeys         []string `toml:"decryption_keys" doc:"Files with private keys (PEM, DER, JWK), certificates for PKCS7 and OpenPGP key rings that open encrypted layers, and folders of such files; the password of a key is in a file with .password added to its name. Read when an encrypted image is pulled or imported, or used after a change."`
	TrustProgram           string   `toml:"trust_program" doc:"cri-shim-trust, which reads signatures and the keys of encrypted layers. Empty: the one beside the daemon's own program."`
	ImagePlatform          string   `toml:"image_platform" doc:"Platform to choose from multi-platform images, such as linux/arm64/v8. Empty: this machine's."`

	Snapshotter         string `toml:"snapshotter" doc:"How root file systems of containers are made: overlay, over the image's layers; native, as copies; auto tries overlay out when the daemon starts and takes copies where it cannot be used."`
	LayerFormat         string `toml:"layer_format" doc:"How layers of images are kept that are pulled from now on: erofs, each as one file with a compressed file system, which needs Linux 6.15; directory, as files of their own; auto tries erofs out when the daemon starts and takes directories where it cannot be used. Layers that are there already stay as they are."`
	LayerCompression    string `toml:"layer_compression" doc:"Compression of files in layers that are kept as erofs: lz4; none, for a disk that compresses by itself; auto is lz4 that does with less thorough compression while a pull waits for the processor and not for the network."`
	WritableLayerSize   Size   `toml:"writable_layer_size" doc:"What a container may write outside of its volumes, by project quota: on xfs mounted with pquota, or ext4 made with -O project,quota and mounted with prjquota. A pod's annotations writable-layer.cri-shim.io/pod and /container.NAME lower it. 0: no limit but by annotation."`
	WritableLayerInodes int64  `toml:"writable_layer_inodes" doc:"Files, directories and links that a container may have outside of its volumes, by project quota as above, so that one container cannot use up the inodes of the node; a handful are the runtime's. A pod's annotations writable-layer-inodes.cri-shim.io/pod and /container.NAME lower it. 0: no limit but by annotation."`

	SeccompProfile  string   `toml:"seccomp_profile" doc:"File with the seccomp profile that RuntimeDefault stands for, in docker's JSON format; read when the daemon starts. Empty: the built-in profile."`
	ApparmorProfile string   `toml:"apparmor_profile" doc:"AppArmor profile that RuntimeDefault stands for, on a node with AppArmor. cri-shim-default is made and loaded when the daemon starts, which takes apparmor_parser; another must be loaded by then. Without it, or if empty, such containers are not confined by AppArmor."`
	PidsLimit       int64    `toml:"pids_limit" doc:"Processes and threads that one container may have. 0: no limit but the pod's, which the kubelet sets (podPidsLimit)."`
	DefaultUlimits  []Ulimit `toml:"default_ulimits" doc:"Resource limits of every container as name=soft:hard (setrlimit's names in lower case), cut to what the daemon itself may set. What is not named is the daemon's own."`

	CDISpecDirs           []string `toml:"cdi_spec_dirs" doc:"Folders of Container Device Interface specifications; of two with the same device the one in the later folder counts. Folders that do not exist are skipped."`
	GPUDriverRoot         string   `toml:"gpu_driver_root" doc:"Where NVIDIA's user-space driver is installed: / or the root of a driver container, such as /run/nvidia/driver."`
	GPUDeviceRoot         string   `toml:"gpu_device_root" doc:"Below which /dev, /proc and /sys are looked at for GPUs and other devices."`
	GPUDriverCapabilities []string `toml:"gpu_driver_capabilities" doc:"Which parts of NVIDIA's driver a container with a GPU gets: compute, compat32, graphics, utility, video, display, ngx."`
	GPUFromEnvironment    bool     `toml:"gpu_from_environment" doc:"Let NVIDIA_VISIBLE_DEVICES and NVIDIA_DRIVER_CAPABILITIES of images and pods ask for GPUs and driver parts. Whoever may write a pod then may use any GPU."`
	BuiltinHandlers       []string `toml:"builtin_handlers" doc:"RuntimeClass handlers that name the built-in runtime, such as nvidia for manifests that expect NVIDIA's."`
	RDTConfigFile         string   `toml:"rdt_config_file" doc:"Classes of cache and memory bandwidth (Intel RDT, AMD QoS) in goresctrl's YAML format; a pod's annotations choose one. Empty: classes that exist can be chosen, none are made."`
	BlockioConfigFile     string   `toml:"blockio_config_file" doc:"Classes of block I/O in goresctrl's YAML format; a pod's annotations choose one. Empty: there are none."`

	CRIUProgram        string   `toml:"criu_program" doc:"The criu program, by which containers are checkpointed; a name is looked for in $PATH. It is run when a checkpoint is asked for, and not before."`
	RestoreFromImages  bool     `toml:"restore_from_images" doc:"Containers may be made of images that hold a checkpoint. criu does as root what such an image says, and part of it cannot be checked: only for a node whose images all come from who may be root on it."`
	RestoreArchiveDirs []string `toml:"restore_archive_dirs" doc:"Folders below which an archive of a checkpoint may be named as a container's image, by its path. Whoever can write to them is trusted as root."`

	NRIEnabled             string   `toml:"nri_enabled" doc:"Plugins of the Node Resource Interface, which hear of pods and containers and may change them: on, off, or auto, which is on where nri_plugin_dir exists when the daemon starts."`
	NRISocket              string   `toml:"nri_socket" doc:"Unix socket that plugins connect to. Whoever may, has the rights of root on the node."`
	NRIPluginDir           string   `toml:"nri_plugin_dir" doc:"Programs in it are run as plugins: two digits for the order, a dash, a name."`
	NRIConfigDir           string   `toml:"nri_config_dir" doc:"Configurations of those plugins: NN-NAME.conf or NAME.conf."`
	NRIRegistrationTimeout Duration `toml:"nri_registration_timeout" doc:"How long a plugin that was started or has connected may take to register."`
	NRIRequestTimeout      Duration `toml:"nri_request_timeout" doc:"How long a plugin may take to answer; then it is disconnected, and the pod goes on without it."`

	EnableUnprivilegedPorts bool `toml:"enable_unprivileged_ports" doc:"Let pods with a network of their own bind ports below 1024 without CAP_NET_BIND_SERVICE."`
	EnableUnprivilegedICMP  bool `toml:"enable_unprivileged_icmp" doc:"Let pods with a network of their own ping without CAP_NET_RAW."`

	LogLineMax          Size `toml:"log_line_max" doc:"Longest piece of a container's line in its log; a longer line is marked partial and goes on in the next entry."`
	ExecSyncOutputLimit Size `toml:"exec_sync_output_limit" doc:"What ExecSync returns of each output stream at most; the rest is dropped. 16MiB is the CRI's limit."`
	MaxCRIMessageSize   Size `toml:"max_cri_message_size" doc:"Largest request that is taken. Answers are as large as they need to be; the kubelet takes 16MiB."`

	MetricsListen string `toml:"metrics_listen" doc:"Where metrics of the daemon are served over HTTP, at /metrics: an absolute path is a unix socket that root may use, 127.0.0.1:9100 a loopback address. Empty: nowhere; cri-shim metrics prints them in any case."`

	StreamListen      string   `toml:"stream_listen" doc:"Address of the server that exec, attach and port-forward connect to, through the kubelet; port 0 is any that is free. Other than loopback only with TLS."`
	StreamTLSCert     string   `toml:"stream_tls_cert" doc:"File with the streaming server's certificate, in PEM, with intermediate ones behind it. It is read again when it has changed. Empty: no TLS."`
	StreamTLSKey      string   `toml:"stream_tls_key" doc:"File with the key of stream_tls_cert."`
	StreamIdleTimeout Duration `toml:"stream_idle_timeout" doc:"How long an exec, attach or port-forward may be without traffic, and how long its client may take nothing, before it is ended."`

	KillTimeout       Duration `toml:"kill_timeout" doc:"How long to wait for a killed process before the call fails with its kernel stack."`
	DrainTimeout      Duration `toml:"drain_timeout" doc:"How long running calls may go on when the daemon is told to stop."`
	ReconcileInterval Duration `toml:"reconcile_interval" doc:"How often records are compared with what the kernel has, and interrupted work is finished."`

	Runtimes map[string]Runtime `toml:"runtimes" doc:"Other OCI runtimes, each a RuntimeClass handler by its name beside the built-in runtime, which is the handler without a name. path is the program; options come before its command, as in [\"--debug\"]; timeout bounds one call of it (default 1m)."`
}

// Runtime is another OCI runtime, driven over the command line that runc has.
type Runtime struct {
	Path    string   `toml:"path"`
	Options []string `toml:"options"`
	Timeout Duration `toml:"timeout,omitempty"`
}

// DefaultRuntimeTimeout is the Timeout of a Runtime that has none.
const DefaultRuntimeTimeout = time.Minute

// DefaultPath is the file that Load("") reads if it exists.
const DefaultPath = "/etc/cri-shim/config.toml"

// Default is the configuration of a machine without a configuration file.
func Default() Config {
	return Config{
		Root:                    "/var/lib/cri-shim",
		State:                   "/run/cri-shim",
		Listen:                  "/run/cri-shim/cri-shim.sock",
		LogLevel:                "info",
		LogFormat:               "text",
		ApparmorProfile:         "cri-shim-default",
		PodsPerSupervisor:       32,
		CRIUProgram:             "criu",
		NRIEnabled:              "auto",
		NRISocket:               "/var/run/nri/nri.sock",
		NRIPluginDir:            "/opt/nri/plugins",
		NRIConfigDir:            "/etc/nri/conf.d",
		NRIRegistrationTimeout:  Seconds(5),
		NRIRequestTimeout:       Seconds(2),
		Snapshotter:             "auto",
		LayerFormat:             "auto",
		LayerCompression:        "auto",
		SupervisorCgroup:        "/cri-shim/supervisors",
		CgroupDriver:            "cgroupfs",
		CNIConfDir:              "/etc/cni/net.d",
		CNIBinDirs:              []string{"/opt/cni/bin", "/usr/lib/cni"},
		CNITimeout:              Seconds(60),
		NetnsDir:                "/run/netns",
		RegistryConfigDirs:      []string{"/etc/cri-shim/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"},
		RegistryAuthFiles:       []string{"/etc/cri-shim/auth.d"},
		MaxConcurrentDownloads:  3,
		GzipProgram:             "auto",
		MaxLayerSize:            256 * GiB,
		MaxLayerEntries:         8 << 20,
		PullProgressTimeout:     Seconds(30),
		ImageVerifierTimeout:    Seconds(10),
		SignatureSourcesDir:     "/etc/containers/registries.d",
		DecryptionKeys:          []string{"/etc/cri-shim/keys"},
		CDISpecDirs:             []string{"/etc/cdi", "/var/run/cdi"},
		GPUDriverRoot:           "/",
		GPUDeviceRoot:           "/",
		GPUDriverCapabilities:   []string{"compute", "utility"},
		DefaultUlimits:          []Ulimit{{Name: "nofile", Soft: 1024, Hard: 524288}},
		EnableUnprivilegedPorts: true,
		EnableUnprivilegedICMP:  true,
		LogLineMax:              16 * KiB,
		ExecSyncOutputLimit:     16 * MiB,
		MaxCRIMessageSize:       16 * MiB,
		StreamListen:            "127.0.0.1:0",
		StreamIdleTimeout:       Seconds(4 * 60 * 60),
		KillTimeout:             Seconds(10),
		DrainTimeout:            Seconds(30),
		ReconcileInterval:       Seconds(5 * 60),
	}
}
