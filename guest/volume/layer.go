// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// maxDataBlocks is 128 GiB, the largest file system of a layer.
	maxDataBlocks = 128 << 30 / blockSize
	// hashesPerBlock is how many SHA-256 hashes a block of the tree holds.
	hashesPerBlock = blockSize / sha256.Size
	// layerReadAhead is in bytes. Whoever starts a program reads this much
	// around each page that is missing, and all of it is hashed: twice the
	// kernel's own measure helps sequential readers and does not yet hurt.
	layerReadAhead = 256 << 10
	// incompat64Bit is ext4's INCOMPAT_64BIT.
	incompat64Bit = 0x80
)

// OpenLayer opens the disk with serial "layer<device>", an ext4 file system of
// dataBlocks blocks of 4096 bytes followed by a dm-verity superblock and tree,
// and mounts it read-only at target, which exists. root is the dm-verity root
// hash with SHA-256 and a salt of 32 zero bytes.
//
// A nil error means that everything read at target from now on is what root
// names, or is an I/O error, or ends the guest by a kernel panic. The host may
// lie about everything on the disk. Closing unmounts.
func (d *Disks) OpenLayer(ctx context.Context, device int, root [32]byte, dataBlocks int64, target string) (io.Closer, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("opening layer %d: %w", device, err)
	}
	if device < 0 {
		return nil, fmt.Errorf("opening layer %d: no such device", device)
	}
	// One block would have no tree: its own hash would be the root.
	if dataBlocks < 2 || dataBlocks > maxDataBlocks {
		return nil, fmt.Errorf("opening layer %d: a layer has 2 to %d data blocks, not %d", device, maxDataBlocks, dataBlocks)
	}
	dk, err := d.find("layer" + strconv.Itoa(device))
	if err != nil {
		return nil, fmt.Errorf("opening layer %d: %w", device, err)
	}
	if need := (dataBlocks + 1 + treeBlocks(dataBlocks)) * blockSize; dk.size < need {
		return nil, fmt.Errorf("disk %s is %d bytes, which is too small for %d data blocks and their tree: %d bytes are needed", dk.serial, dk.size, dataBlocks, need)
	}
	if err := checkRoot(dk, root, dataBlocks); err != nil {
		return nil, err
	}
	return d.mountLayer(dk, root, dataBlocks, target)
}

func (d *Disks) mountLayer(dk disk, root [32]byte, dataBlocks int64, target string) (io.Closer, error) {
	m, err := d.newMapping(dk.serial, verityTarget(dk.dev, root, dataBlocks))
	if err != nil {
		return nil, fmt.Errorf("opening disk %s: %w", dk.serial, err)
	}
	if err := d.setReadAhead(m.block, layerReadAhead); err != nil {
		return nil, m.undo(err)
	}
	if err := checkSuperblock(m.node, dataBlocks); err != nil {
		return nil, m.undo(fmt.Errorf("opening disk %s: %w", dk.serial, err))
	}
	// Not nodev and not nosuid: overlayfs needs its whiteouts, and programs of
	// the image keep their set-user-ID bits.
	if err := unix.Mount(m.node, target, "ext4", unix.MS_RDONLY, "noload"); err != nil {
		return nil, m.undo(fmt.Errorf("mounting disk %s at %s: %w", dk.serial, target, err))
	}
	return &mount{target: target, under: m}, nil
}

// treeBlocks is the number of blocks of the Merkle tree over n > 1 blocks.
func treeBlocks(n int64) int64 {
	var sum int64
	for n > 1 {
		n = (n + hashesPerBlock - 1) / hashesPerBlock
		sum += n
	}
	return sum
}

// verityTarget is the table line. Nothing in it is read from the disk.
//
// Not check_at_most_once: the host can change a block after it was read. A
// corrupted block ends the guest, so that no program can take a read error for
// the absence of a file.
func verityTarget(dev string, root [32]byte, dataBlocks int64) target {
	var salt [32]byte
	return target{
		kind: "verity", sectors: dataBlocks * (blockSize / sectorSize), readOnly: true,
		params: fmt.Appendf(nil, "1 %s %s %d %d %d %d sha256 %x %x 1 panic_on_corruption",
			dev, dev, blockSize, blockSize, dataBlocks, dataBlocks+1, root, salt),
	}
}

// checkRoot compares root with the top of the tree on the disk, so that a
// wrong disk is a message and not a panic. dm-verity does not rely on it.
func checkRoot(dk disk, root [32]byte, dataBlocks int64) error {
	var b [32 + blockSize]byte // the salt comes first
	if err := readAt(dk.node, b[32:], (dataBlocks+1)*blockSize); err != nil {
		return fmt.Errorf("reading disk %s: %w", dk.serial, err)
	}
	if got := sha256.Sum256(b[:]); got != root {
		return fmt.Errorf("disk %s is another layer or has been changed: with %d data blocks its root hash is %x, not %x", dk.serial, dataBlocks, got, root)
	}
	return nil
}

// checkSuperblock holds the file system at node, read through dm-verity, to be
// an ext4 of exactly dataBlocks blocks: the root hash alone does not say how
// long the data is.
func checkSuperblock(node string, dataBlocks int64) error {
	// ext4: the superblock is at byte 1024, s_blocks_count_lo at 4,
	// s_log_block_size at 24, s_magic at 56, s_feature_incompat at 96,
	// s_blocks_count_hi at 336.
	var sb [1024]byte
	if err := readAt(node, sb[:], 1024); err != nil {
		return fmt.Errorf("reading its ext4 superblock: %w", err)
	}
	if binary.LittleEndian.Uint16(sb[56:]) != 0xef53 {
		return fmt.Errorf("it holds no ext4 file system")
	}
	if log := binary.LittleEndian.Uint32(sb[24:]); log != 2 {
		return fmt.Errorf("its ext4 has blocks of 1024<<%d bytes, not 4096", log)
	}
	blocks := uint64(binary.LittleEndian.Uint32(sb[4:]))
	if binary.LittleEndian.Uint32(sb[96:])&incompat64Bit != 0 {
		blocks |= uint64(binary.LittleEndian.Uint32(sb[336:])) << 32
	}
	if blocks != uint64(dataBlocks) {
		return fmt.Errorf("its ext4 has %d blocks, not the %d that were announced", blocks, dataBlocks)
	}
	return nil
}

func readAt(path string, b []byte, offset int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(b, offset)
	return err
}
