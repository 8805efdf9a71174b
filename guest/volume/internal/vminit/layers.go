// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The good scenario has layers 0 (bottom) to 2 (top) in order, then what the
// test names here.
const (
	truncated = 3 // its disk is cut off
	padded    = 4 // its tree covers more than its ext4
	twice     = 5 // two disks have this serial
	missing   = 6 // no disk has
)

func (g *guest) goodChecks() []check {
	return []check{
		{"content", g.content},
		{"wrong root", func() error {
			root := g.root(0)
			root[31] ^= 1
			_, err := g.disks.OpenLayer(context.Background(), 0, root, g.Layers[0].DataBlocks, "/mnt")
			return refused(err, "disk layer0 is another layer or has been changed", g.Layers[0].Root)
		}},
		{"another disk", func() error {
			_, err := g.disks.OpenLayer(context.Background(), padded, g.root(0), g.Layers[0].DataBlocks, "/mnt")
			return refused(err, "disk layer4 is another layer or has been changed")
		}},
		{"wrong data blocks", g.wrongBlocks},
		{"truncated", func() error {
			return refused(g.open(truncated), "disk layer3 is 8192 bytes, which is too small for", "data blocks and their tree")
		}},
		{"padded", func() error { return refused(g.open(padded), "opening disk layer4: its ext4 has", "not the") }},
		{"twice", func() error { return refused(g.open(twice), "2 disks with serial layer5 are attached") }},
		{"missing", func() error { return refused(g.open(missing), "no disk with serial layer6 is attached") }},
		{"close", g.closing},
		{"overlay", g.overlay},
		{"bind", g.bind},
		{"memory scratch", g.memoryScratch},
		{"500 lowers", g.lowers},
	}
}

// open opens layer i at a directory of its own; nobody closes it.
func (g *guest) open(i int) error {
	dir := layerDir(i)
	if err := mkdirs(dir); err != nil {
		return err
	}
	_, err := g.disks.OpenLayer(context.Background(), g.Layers[i].Device, g.root(i), g.Layers[i].DataBlocks, dir)
	return err
}

func layerDir(i int) string { return fmt.Sprintf("/run/mounts/scsi/m%d", i) }

func (g *guest) content() error {
	if err := first(mkdirs("/mnt"), g.open(0), g.open(1), g.open(2)); err != nil {
		return err
	}
	m := layerDir(0)
	info, err := os.Stat(m + "/bin/tool")
	if err != nil {
		return err
	}
	if info.Mode() != 0o755|fs.ModeSetuid {
		return fmt.Errorf("bin/tool has mode %v", info.Mode())
	}
	var st unix.Stat_t
	if err := unix.Stat(m+"/dev/null", &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(st.Rdev) != 1 || unix.Minor(st.Rdev) != 3 {
		return fmt.Errorf("dev/null is %+v", st)
	}
	err = os.WriteFile(m+"/new", nil, 0o644)
	if !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("writing to a layer: %w; want EROFS", err)
	}
	null, err := os.OpenFile(m+"/dev/null", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("device nodes must work: %w", err)
	}
	null.Close()
	return first(holds(m+"/etc/name", "bottom\n"), holds(m+"/etc/hard", "bottom\n"),
		holds(m+"/big", strings.Repeat("0123456789abcdef", 1<<16)), holds(layerDir(2)+"/top", "top\n"))
}

func (g *guest) wrongBlocks() error {
	n := g.Layers[0].DataBlocks
	for _, wrong := range []int64{n - 1, n + 1, n / 2} {
		_, err := g.disks.OpenLayer(context.Background(), 0, g.root(0), wrong, "/mnt")
		if err == nil {
			return fmt.Errorf("opened with %d data blocks, has %d", wrong, n)
		}
	}
	for _, wrong := range []int64{0, -1, 1, 1 << 26, -1 << 63, 1<<63 - 1} {
		_, err := g.disks.OpenLayer(context.Background(), 0, g.root(0), wrong, "/mnt")
		if err := refused(err, "a layer has 2 to"); err != nil {
			return err
		}
	}
	return nil
}

// closing: what is closed can be opened again, and leaves nothing.
func (g *guest) closing() error {
	before, err := filepath.Glob("/sys/block/dm-*")
	if err != nil {
		return err
	}
	for range 3 {
		c, err := g.disks.OpenLayer(context.Background(), 0, g.root(0), g.Layers[0].DataBlocks, "/mnt")
		if err != nil {
			return err
		}
		f, err := os.Open("/mnt/etc/name")
		if err != nil {
			return err
		}
		if err := refused(c.Close(), "busy"); err != nil {
			return err
		}
		f.Close()
		if err := c.Close(); err != nil {
			return err
		}
		if err := first(refused(c.Close(), "already"), absent("/mnt/etc")); err != nil {
			return err
		}
	}
	after, err := filepath.Glob("/sys/block/dm-*")
	if err != nil || len(after) != len(before) {
		return fmt.Errorf("mappings before %q, after %q, %w", before, after, err)
	}
	return nil
}

// stack mounts an overlay of the three layers on scratch, in a directory whose
// name has all that mount options give a meaning.
func (g *guest) stack(scratch string) (io.Closer, string, error) {
	base := scratch + `/a:b,c\d "e`
	root := base + "/root"
	if err := mkdirs(base+"/upper", base+"/work", root); err != nil {
		return nil, "", err
	}
	c, err := g.disks.Overlay(root, []string{layerDir(2), layerDir(1), layerDir(0)}, base+"/upper", base+"/work")
	return c, root, err
}

func (g *guest) overlay() error {
	c, root, err := g.stack("/run/overlay")
	if err != nil {
		return err
	}
	err = first(
		holds(root+"/top", "top\n"), holds(root+"/etc/name", "middle\n"), holds(root+"/etc/hard", "bottom\n"),
		absent(root+"/gone"), absent(root+"/tree/inner/file"), // whiteouts of a file and of a directory
		holds(root+"/opaque/new", "new\n"), absent(root+"/opaque/old"),
		holds(root+"/again", "back\n"), // whiteout in the middle, there again at the top
		os.WriteFile(root+"/etc/name", []byte("written\n"), 0o644), holds(root+"/etc/name", "written\n"),
		holds(layerDir(1)+"/etc/name", "middle\n"), os.Remove(root+"/top"), absent(root+"/top"))
	if err != nil {
		return err
	}
	if err := os.Rename(root+"/bin", root+"/sbin"); !errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("renaming a directory of a layer: %w; want EXDEV, as with docker", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return err
	}
	if st.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC|unix.ST_RDONLY) != 0 {
		return fmt.Errorf("overlay has flags %#x", st.Flags)
	}
	wd, err := os.Getwd()
	if err != nil || wd != "/" {
		return fmt.Errorf("working directory is %q, %w; want /", wd, err)
	}
	return first(c.Close(), absent(root+"/etc"))
}

func (g *guest) bind() error {
	if err := first(mkdirs("/run/bound", "/run/source/sub"), os.WriteFile("/run/source/sub/f", []byte("x"), 0o600), os.WriteFile("/run/file", nil, 0o600)); err != nil {
		return err
	}
	dir, err := g.disks.Bind("/run/source", "/run/bound")
	if err != nil {
		return err
	}
	file, err := g.disks.Bind("/run/source/sub/f", "/run/file")
	if err != nil {
		return err
	}
	if err := os.WriteFile("/run/bound/sub/f", []byte("y"), 0o600); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("writing below a bound directory: %w; want EROFS", err)
	}
	if err := os.WriteFile("/run/file", []byte("y"), 0o600); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("writing to a bound file: %v; want EROFS", fmt.Sprint(err))
	}
	_, err = g.disks.Bind("/run/nothing", "/run/bound")
	return first(refused(err, "/run/nothing"), holds("/run/bound/sub/f", "x"), holds("/run/file", "x"),
		dir.Close(), file.Close(), absent("/run/bound/sub"), holds("/run/file", ""),
		os.WriteFile("/run/source/sub/f", []byte("y"), 0o600))
}

func (g *guest) memoryScratch() error {
	const size = 32 << 20
	if err := mkdirs("/run/scratch"); err != nil {
		return err
	}
	if err := refused(g.disks.Scratch(context.Background(), false, -1, "/run/scratch"), "-1 bytes"); err != nil {
		return err
	}
	if err := g.disks.Scratch(context.Background(), false, size, "/run/scratch"); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/run/scratch", &st); err != nil {
		return err
	}
	if int64(st.Blocks)*st.Bsize != size {
		return fmt.Errorf("scratch has %d bytes; want %d", int64(st.Blocks)*st.Bsize, size)
	}
	info, err := os.Stat("/run/scratch")
	if err != nil || info.Mode().Perm() != 0o711 {
		return fmt.Errorf("scratch has mode %v, %w; want 0711", info.Mode(), err)
	}
	c, root, err := g.stack("/run/scratch")
	if err != nil {
		return err
	}
	return first(os.RemoveAll(root+"/opaque"), os.Mkdir(root+"/opaque", 0o755), absent(root+"/opaque/new"), c.Close())
}

func (g *guest) lowers() error {
	var dirs []string
	for i := range 501 {
		dir := fmt.Sprintf("/run/lowers/a-directory-with-a-name-of-some-length-%d", i)
		if err := first(mkdirs(dir), os.WriteFile(fmt.Sprintf("%s/f%d", dir, i), nil, 0o644),
			os.WriteFile(dir+"/same", fmt.Append(nil, i), 0o644)); err != nil {
			return err
		}
		dirs = append(dirs, dir)
	}
	if err := mkdirs("/run/lowers/upper", "/run/lowers/work", "/run/lowers/root"); err != nil {
		return err
	}
	const root = "/run/lowers/root"
	_, err := g.disks.Overlay(root, dirs, "/run/lowers/upper", "/run/lowers/work")
	if err := refused(err, "501 layers"); err != nil {
		return err
	}
	c, err := g.disks.Overlay(root, dirs[:500], "/run/lowers/upper", "/run/lowers/work")
	if err != nil {
		return err
	}
	return first(holds(root+"/same", "0"), holds(root+"/f0", ""), holds(root+"/f499", ""), absent(root+"/f500"), c.Close())
}

// many opens every layer of the scenario and stacks them.
func (g *guest) many() error {
	began := time.Now()
	var dirs []string
	for i := range g.Layers {
		if err := g.open(i); err != nil {
			return err
		}
		dirs = append(dirs, layerDir(i))
	}
	opened := time.Since(began)
	if err := mkdirs("/run/many/upper", "/run/many/work", "/run/many/root"); err != nil {
		return err
	}
	if _, err := g.disks.Overlay("/run/many/root", dirs, "/run/many/upper", "/run/many/work"); err != nil {
		return err
	}
	fmt.Printf("INFO %d layers opened in %v, stacked in %v\n", len(dirs), opened, time.Since(began)-opened)
	return holds("/run/many/root/top", "top\n")
}

// fatal reads what has been changed in layer 0, which ends the guest. If it does not, the bytes
// must at least be right.
func (g *guest) fatal() error {
	if err := g.open(0); err != nil {
		fmt.Printf("INFO refused: %v\n", err)
		return err
	}
	return holds(layerDir(0)+"/big", strings.Repeat("0123456789abcdef", 1<<16))
}
