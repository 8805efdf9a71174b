// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// minScratch leaves room for dm-integrity's and ext4's own blocks.
	minScratch = 16 << 20
	// zeroed is how much is written at both ends of a scratch device before
	// anything reads there, in bytes.
	zeroed = 1 << 20
	// tagSize is HMAC-SHA-256, keySize AES-256-XTS and HMAC-SHA-256, in bytes.
	tagSize = 32
	keySize = 64 + 32
	// keyName is what the table calls the key. The kernel wants a prefix.
	keyName = "coffer:scratch"
)

// scratchDisk mounts the disk with serial "scratch" at target. Whatever it
// held is lost, and what it will hold is lost with the guest's memory.
func (d *Disks) scratchDisk(ctx context.Context, target string) error {
	dk, err := d.find("scratch")
	if err != nil {
		return fmt.Errorf("preparing scratch: %w", err)
	}
	if dk.size < minScratch {
		return fmt.Errorf("disk scratch is %d bytes, which is too small: at least %d are needed", dk.size, minScratch)
	}
	if err := d.cfg.LoadModules("dm_integrity", "dm_crypt", "authenc", "ecb", "xts"); err != nil {
		return fmt.Errorf("preparing scratch: %w", err)
	}
	// Only faster, and only where the CPU has the instructions.
	_ = d.cfg.LoadModules("aesni_intel")
	integrity, sectors, err := d.newIntegrity(dk)
	if err != nil {
		return fmt.Errorf("preparing disk scratch: %w", err)
	}
	crypt, err := d.newCrypt(integrity.dev, sectors)
	if err != nil {
		return integrity.undo(fmt.Errorf("preparing disk scratch: %w", err))
	}
	if err := d.format(ctx, crypt.node, sectors, target); err != nil {
		return integrity.undo(crypt.undo(fmt.Errorf("preparing disk scratch: %w", err)))
	}
	return nil
}

// newIntegrity puts dm-integrity on a disk and returns the sectors that it
// provides. It keeps a tag beside each sector and knows nothing of its meaning.
func (d *Disks) newIntegrity(dk disk) (*mapping, int64, error) {
	// dm-integrity formats a disk that begins with zeros when a table is
	// loaded, and then says in its superblock how much room is left.
	if err := zero(dk.node, 0, blockSize); err != nil {
		return nil, 0, err
	}
	m, err := d.loadMapping("scratch-format", integrityTarget(dk.dev, blockSize/sectorSize))
	if err != nil {
		return nil, 0, err
	}
	if err := m.remove(); err != nil {
		return nil, 0, err
	}
	var sb [sectorSize]byte
	if err := readAt(dk.node, sb[:], 0); err != nil {
		return nil, 0, fmt.Errorf("reading the dm-integrity superblock: %w", err)
	}
	sectors, err := providedSectors(sb[:], dk.size)
	if err != nil {
		return nil, 0, err
	}
	if m, err = d.newMapping("scratch-tags", integrityTarget(dk.dev, sectors)); err != nil {
		return nil, 0, err
	}
	return m, sectors, nil
}

// integrityTarget is the table line.
//
// Mode D writes data and tag without a journal: the journal would make both
// survive a crash, which nothing on this disk does, and would write all twice.
// It would also be bytes of the host for the kernel to parse.
func integrityTarget(dev string, sectors int64) target {
	return target{kind: "integrity", sectors: sectors,
		params: fmt.Appendf(nil, "%s 0 %d D 3 block_size:%d journal_sectors:8 fix_padding", dev, tagSize, blockSize)}
}

// providedSectors reads a dm-integrity superblock of a disk of size bytes. The
// host may have changed it; the kernel checks it again.
func providedSectors(sb []byte, size int64) (int64, error) {
	// Linux drivers/md/dm-integrity.c, struct superblock: magic at 0, version
	// at 8, tag size at 10, provided data sectors at 16, flags at 24, log2 of
	// the sectors per block at 28.
	const fixPadding = 0x8
	if !bytes.HasPrefix(sb, []byte("integrt\x00")) || sb[8] == 0 || binary.LittleEndian.Uint16(sb[10:]) != tagSize ||
		binary.LittleEndian.Uint32(sb[24:])&^fixPadding != 0 || sb[28] != 3 {
		return 0, errors.New("the dm-integrity superblock is not what has just been written")
	}
	n := binary.LittleEndian.Uint64(sb[16:])
	if n < minScratch/2/sectorSize || n > uint64(size/sectorSize) {
		return 0, fmt.Errorf("the dm-integrity superblock says that %d bytes have room for %d sectors", size, n)
	}
	return int64(n) &^ (blockSize/sectorSize - 1), nil
}

// newCrypt puts dm-crypt on a dm-integrity device under a new key. Only the
// kernel keeps the key, and its tables show the key's name.
func (d *Disks) newCrypt(dev string, sectors int64) (*mapping, error) {
	runtime.LockOSThread() // the key is found in this thread's keyring
	defer runtime.UnlockOSThread()
	key := make([]byte, keySize)
	defer clear(key)
	rand.Read(key)
	id, err := unix.AddKey("logon", keyName, key, unix.KEY_SPEC_THREAD_KEYRING)
	if err != nil {
		return nil, fmt.Errorf("handing the key to the kernel: %w", err)
	}
	m, err := d.newMapping("scratch", cryptTarget(dev, sectors))
	if _, gone := unix.KeyctlInt(unix.KEYCTL_REVOKE, id, 0, 0, 0); gone != nil {
		gone = fmt.Errorf("revoking the key: %w", gone)
		if err == nil {
			return nil, m.undo(gone)
		}
		return nil, errors.Join(err, gone)
	}
	return m, err
}

// cryptTarget is the table line: encrypt, then authenticate the sector with its
// number. A sector that was not written under this key at this place is EILSEQ,
// which file systems report as EIO.
func cryptTarget(dev string, sectors int64) target {
	return target{kind: "crypt", sectors: sectors,
		params: fmt.Appendf(nil, "capi:authenc(hmac(sha256),xts(aes))-plain64 :%d:logon:%s 0 %s 0 2 integrity:%d:aead sector_size:%d",
			keySize, keyName, dev, tagSize, blockSize)}
}

// format makes an ext4 on a scratch device and mounts it. Sectors that were
// never written cannot be read: mke2fs looks at both ends for another file
// system, has to write all of its metadata now, and must keep no second
// superblock, which would be written into the rest of a block.
//
// Without a journal, and without waiting for the disk: nothing can be recovered
// anyway. An error in the file system's own blocks stops all writing.
func (d *Disks) format(ctx context.Context, node string, sectors int64, target string) error {
	if err := zero(node, 0, zeroed); err != nil {
		return err
	}
	if err := zero(node, sectors*sectorSize-zeroed, zeroed); err != nil {
		return err
	}
	_, err := d.cfg.Run(ctx, d.cfg.Mke2fs, []string{"-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-i", "32768",
		"-O", "^has_journal,^resize_inode,^sparse_super,sparse_super2",
		"-E", "num_backup_sb=0,lazy_itable_init=0,nodiscard,root_owner=0:0", node}, nil)
	if err != nil {
		return err
	}
	if err := unix.Mount(node, target, "ext4", 0, "errors=remount-ro,nobarrier,noinit_itable,nodiscard"); err != nil {
		return fmt.Errorf("mounting %s at %s: %w", node, target, err)
	}
	if err := unix.Chmod(target, 0o711); err != nil {
		return errors.Join(fmt.Errorf("setting the mode of %s: %w", target, err), unix.Unmount(target, unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

// zero writes n zero bytes to a block device and waits for them.
func zero(node string, offset, n int64) error {
	f, err := os.OpenFile(node, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("clearing %s: %w", node, err)
	}
	_, err = f.WriteAt(make([]byte, n), offset)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("clearing %s: %w", node, err)
	}
	return nil
}
