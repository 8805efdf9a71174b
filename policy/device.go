// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strconv"
	"strings"
)

const (
	errHashUnknown    = "deviceHash not found"
	errDeviceMounted  = "device already mounted at path"
	errMountpoint     = "mountpoint invalid"
	errNoDevice       = "no device at path to unmount"
	errDeviceIsRW     = "received read-only unmount request, but device provided is read-write"
	errDeviceIsRO     = "received read-write unmount request, but device provided is read-only"
	errRWUnencrypted  = "unencrypted scratch not allowed, non-readonly mount request for SCSI disk must request encryption"
	errRWNoFilesystem = "ensureFilesystem must be set on rw device mounts"
	errRWFilesystem   = "rw device mounts uses a filesystem that is not allowed"
	errOverlayMounted = "overlay has already been mounted"
	errOverlayUnknown = "no matching containers for overlay"
	errNoOverlay      = "no overlay at path to unmount"
	errScratchMounted = "scratch already mounted at path"
	errScratchPlain   = "unencrypted scratch not allowed"
	errNoScratch      = "no scratch at path to unmount"
)

// denials collects why a request is denied.
type denials struct{ d Denial }

// when notes an error if it is so, with the field that differs and the edit that would allow it ("" if none would).
func (c *denials) when(so bool, err string, diff FieldDiff, edit string) {
	if !so {
		return
	}
	c.d.Errors = append(c.d.Errors, err)
	c.d.Fields = append(c.d.Fields, diff)
	if edit != "" {
		c.d.addEdit(edit)
	}
}

// whenText is when for a field that the host gave as text. In edit, %s is that text.
func (c *denials) whenText(so bool, err string, f FieldDiff, edit string) {
	if so {
		f.Asked = quote(f.Asked)
		c.when(true, err, f, strings.ReplaceAll(edit, "%s", f.Asked))
	}
}

// denial is nil if nothing was noted.
func (c *denials) denial() *Denial {
	if len(c.d.Errors) == 0 {
		return nil
	}
	c.d.sortErrors()
	return &c.d
}

func (s *State) targetInvalid(target, pattern string) bool {
	return pattern != "" && !s.policy.paths.match(pattern, target)
}

func (s *State) deviceMounted(target string) bool { return s.devices.has(target) || s.rw.has(target) }

func (s *State) mountDevice(r *MountDevice) *Denial {
	var c denials
	c.whenText(!s.policy.hashes[r.DeviceHash], errHashUnknown, FieldDiff{"deviceHash", r.DeviceHash, "a root hash in the layers of a container"}, "add %s to the layers of the container that it belongs to")
	c.whenText(s.deviceMounted(r.Target), errDeviceMounted, FieldDiff{"target", r.Target, "a path that is not in use"}, "")
	c.whenText(s.targetInvalid(r.Target, r.MountPathRegex), errMountpoint, FieldDiff{"target", r.Target, "a path that matches " + r.MountPathRegex}, "")
	s.devices = s.devices.with(r.Target, r.DeviceHash)
	return c.denial()
}

func (s *State) unmountDevice(r *UnmountDevice) *Denial {
	var c denials
	const want = "the path of a mounted read-only disk"
	c.whenText(!s.deviceMounted(r.UnmountTarget), errNoDevice, FieldDiff{"unmountTarget", r.UnmountTarget, want}, "")
	c.whenText(!s.devices.has(r.UnmountTarget) && s.rw.has(r.UnmountTarget), errDeviceIsRW, FieldDiff{"unmountTarget", r.UnmountTarget, want}, "")
	s.devices = s.devices.without(r.UnmountTarget)
	return c.denial()
}

func (s *State) rwMountDevice(r *RWMountDevice) *Denial {
	var c denials
	c.whenText(s.deviceMounted(r.Target), errDeviceMounted, FieldDiff{"target", r.Target, "a path that is not in use"}, "")
	c.whenText(s.targetInvalid(r.Target, r.MountPathRegex), errMountpoint, FieldDiff{"target", r.Target, "a path that matches " + r.MountPathRegex}, "")
	c.when(!r.Encrypted && !s.policy.flags[flagUnencrypted], errRWUnencrypted,
		FieldDiff{"encrypted", "false", "true"}, "set "+flagUnencrypted+" to true")
	c.when(!r.EnsureFilesystem, errRWNoFilesystem, FieldDiff{"ensureFilesystem", "false", "true"}, "")
	c.whenText(r.Filesystem != "ext4" && r.Filesystem != "xfs", errRWFilesystem, FieldDiff{"filesystem", r.Filesystem, `"ext4" or "xfs"`}, "")
	s.rw = s.rw.with(r.Target, r.Encrypted)
	return c.denial()
}

func (s *State) rwUnmountDevice(r *RWUnmountDevice) *Denial {
	var c denials
	const want = "the path of a mounted writable disk"
	c.whenText(!s.deviceMounted(r.UnmountTarget), errNoDevice, FieldDiff{"unmountTarget", r.UnmountTarget, want}, "")
	c.whenText(!s.rw.has(r.UnmountTarget) && s.devices.has(r.UnmountTarget), errDeviceIsRO, FieldDiff{"unmountTarget", r.UnmountTarget, want}, "")
	s.rw = s.rw.without(r.UnmountTarget)
	return c.denial()
}

func (s *State) scratchMount(r *ScratchMount) *Denial {
	var c denials
	c.whenText(s.scratch.has(r.Target), errScratchMounted, FieldDiff{"target", r.Target, "a path that is not in use"}, "")
	c.when(!r.Encrypted && !s.policy.flags[flagUnencrypted], errScratchPlain,
		FieldDiff{"encrypted", "false", "true"}, "set "+flagUnencrypted+" to true")
	s.scratch = s.scratch.with(r.Target, r.Encrypted)
	return c.denial()
}

func (s *State) scratchUnmount(r *ScratchUnmount) *Denial {
	var c denials
	c.whenText(!s.scratch.has(r.UnmountTarget), errNoScratch, FieldDiff{"unmountTarget", r.UnmountTarget, "the path of a mounted scratch"}, "")
	s.scratch = s.scratch.without(r.UnmountTarget)
	return c.denial()
}

// mountOverlay fixes what a container can be: those of the policy that have exactly these layers in this order.
func (s *State) mountOverlay(r *MountOverlay) *Denial {
	var c denials
	// The original lets an ID that was shut down have a new overlay, and then runs the commands of another container
	// of the policy in what may still be the old one. An ID is used once here.
	c.whenText(s.matches.has(r.ContainerID) || s.started.has(r.ContainerID), errOverlayMounted, FieldDiff{"containerID", r.ContainerID, "an ID that was not used before"}, "")
	c.whenText(s.overlays.has(r.Target), errOverlayMounted, FieldDiff{"target", r.Target, "a path that is not in use"}, "")
	hashes, unmounted := s.layerHashes(r.LayerPaths)
	candidates := s.policy.byLayers[layersKey(hashes)]
	if unmounted != "" {
		candidates = nil
	}
	if len(candidates) == 0 {
		c.d.Errors = append(c.d.Errors, errOverlayUnknown)
		s.explainOverlay(&c.d, hashes, unmounted)
		return c.denial()
	}
	s.matches = s.matches.with(r.ContainerID, candidates)
	s.overlays = s.overlays.with(r.Target, true)
	return c.denial()
}

// layerHashes returns the root hashes, bottom to top, of layers given top to bottom; and the first path where nothing
// is mounted.
func (s *State) layerHashes(paths []string) (hashes []string, unmounted string) {
	hashes = make([]string, len(paths))
	for i, path := range paths {
		hash, ok := s.devices.get(path)
		if !ok && unmounted == "" {
			unmounted = quote(path)
		}
		hashes[len(paths)-1-i] = hash
	}
	return hashes, unmounted
}

func (s *State) unmountOverlay(r *UnmountOverlay) *Denial {
	var c denials
	c.whenText(!s.overlays.has(r.UnmountTarget), errNoOverlay, FieldDiff{"unmountTarget", r.UnmountTarget, "the path of a mounted overlay"}, "")
	s.overlays = s.overlays.without(r.UnmountTarget)
	return c.denial()
}

func (s *State) plan9Mount(r *Plan9Mount) *Denial {
	var c denials
	c.whenText(s.plan9.has(r.Target), errDeviceMounted, FieldDiff{"target", r.Target, "a path that is not in use"}, "")
	owner, found := "", false
	s.matches.all(func(id string, _ []*container) bool {
		rest, ok := strings.CutPrefix(r.Target, r.RootPrefix+"/"+id)
		if ok && id != "" && s.policy.paths.match(r.MountPathPrefix, rest) {
			owner, found = id, true
		}
		return !found
	})
	if d := c.denial(); d != nil {
		return d
	}
	if !found {
		return &Denial{Fields: []FieldDiff{{"target", quote(r.Target), "a path of a container whose overlay is mounted"}}}
	}
	s.plan9 = s.plan9.with(r.Target, owner)
	return nil
}

func (s *State) plan9Unmount(r *Plan9Unmount) *Denial {
	var c denials
	c.whenText(!s.plan9.has(r.UnmountTarget), errNoDevice, FieldDiff{"unmountTarget", r.UnmountTarget, "the path of a mounted directory"}, "")
	s.plan9 = s.plan9.without(r.UnmountTarget)
	return c.denial()
}

// explainOverlay names the container whose layers come nearest.
func (s *State) explainOverlay(d *Denial, hashes []string, unmounted string) {
	if unmounted != "" {
		d.Fields = append(d.Fields, FieldDiff{"layerPaths", unmounted, "the path of a mounted read-only disk"})
		return
	}
	var near *container
	best := -1
	for _, c := range s.policy.containers {
		differ := max(len(c.layers), len(hashes))
		for i := range min(len(c.layers), len(hashes)) {
			if c.layers[i] == hashes[i] {
				differ--
			}
		}
		if best < 0 || differ < best {
			near, best = c, differ
		}
	}
	if near == nil {
		d.Fields = append(d.Fields, FieldDiff{"layers", quotes(hashes), "none: the policy has no containers"})
		return
	}
	d.Container = near.label()
	d.Fields = append(d.Fields, FieldDiff{"layers", quotes(hashes), quotes(near.layers)})
	if best == 0 {
		d.Fields[len(d.Fields)-1].Allowed = "none: " + near.never
		return
	}
	for i := range min(len(near.layers), len(hashes)) {
		if near.layers[i] != hashes[i] {
			d.addEdit("set " + near.path() + ".layers[" + strconv.Itoa(i) + "] to " + quote(hashes[i]))
		}
	}
	if len(near.layers) != len(hashes) {
		d.addEdit("give " + near.path() + ".layers " + strconv.Itoa(len(hashes)) + " elements")
	}
}
