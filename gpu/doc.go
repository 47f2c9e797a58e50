// Package gpu finds the devices of a node that containers can ask for by name, and says what a container
// needs to use one: device nodes, files of the driver, environment, hooks. Names and edits are those of the
// Container Device Interface (CDI, https://tags.cncf.io/container-device-interface): specifications on disk,
// which vendors' tools write, and those that are made here, in memory, for what has none.
//
// Nothing is read before a container asks for a device.
package gpu
