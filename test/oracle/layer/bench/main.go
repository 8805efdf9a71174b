// SPDX-License-Identifier: Apache-2.0

// Command bench converts a layer tar alternately with package layer and with hcsshim's tar2ext4, checks that they
// agree on the root hash, and prints both speeds, their ratio, and the processor time of each. It writes beside the
// tar, or to the directory given. The ratio is that of the best runs: what else runs on the machine can only slow a
// run down. If it never stops, compare the processor times.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/Microsoft/hcsshim/ext4/dmverity"
	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/coffer-dev/coffer/layer"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	runs := flags.Int("n", 5, "number of runs of each")
	dir := flags.String("dir", "", "where to write images (default: beside the tar)")
	if err := flags.Parse(args); err != nil || flags.NArg() != 1 || *runs < 1 {
		fmt.Fprintln(stderr, "usage: bench [-n runs] [-dir directory] TAR")
		return 2
	}
	if *dir == "" {
		*dir = filepath.Dir(flags.Arg(0))
	}
	if err := compare(stdout, flags.Arg(0), *dir, *runs); err != nil {
		fmt.Fprintln(stderr, "bench: error:", err)
		return 1
	}
	return 0
}

func compare(stdout io.Writer, tarName, dir string, runs int) error {
	info, err := os.Stat(tarName)
	if err != nil {
		return err
	}
	// Read once, so that each run finds it in the page cache.
	if err := with(tarName, func(f *os.File) error {
		_, err := io.Copy(io.Discard, f)
		return err
	}); err != nil {
		return err
	}
	var roots [2][]byte
	var speeds, used [2][]float64
	for range runs {
		for i, convert := range []func(r io.Reader, w *os.File) ([]byte, error){coffer, hcsshim} {
			root, took, cpu, err := once(tarName, dir, convert)
			if err != nil {
				return err
			}
			roots[i] = root
			speeds[i] = append(speeds[i], float64(info.Size())/1e6/took.Seconds())
			used[i] = append(used[i], cpu.Seconds())
		}
		if !bytes.Equal(roots[0], roots[1]) {
			return fmt.Errorf("roots differ: %x and %x", roots[0], roots[1])
		}
	}
	fmt.Fprintf(stdout, "tar: %d bytes, root %x, %d runs each\n", info.Size(), roots[0], runs)
	for i, name := range []string{"coffer layer.Convert", "hcsshim tar2ext4.Convert"} {
		fmt.Fprintf(stdout, "%s: best %.0f MB/s, median %.0f MB/s, processor time %.2f s\n",
			name, slices.Max(speeds[i]), median(speeds[i]), median(used[i]))
	}
	fmt.Fprintf(stdout, "layer_convert_ratio: %.2f\n", slices.Max(speeds[0])/slices.Max(speeds[1]))
	return nil
}

// once converts into a new file, which is gone afterwards, and returns the root hash, the time it took and the
// processor time, of all processors, in this process and in the kernel for it.
func once(tarName, dir string, convert func(r io.Reader, w *os.File) ([]byte, error)) (root []byte, took, cpu time.Duration, err error) {
	w, err := os.CreateTemp(dir, "bench-*.img")
	if err != nil {
		return nil, 0, 0, err
	}
	defer os.Remove(w.Name())
	defer w.Close()
	err = with(tarName, func(f *os.File) error {
		start, before := time.Now(), processorTime()
		var err error
		root, err = convert(f, w)
		took, cpu = time.Since(start), processorTime()-before
		return err
	})
	return root, took, cpu, err
}

func coffer(r io.Reader, w *os.File) ([]byte, error) {
	img, err := layer.Convert(context.Background(), r, w)
	return img.Root[:], err
}

func hcsshim(r io.Reader, w *os.File) ([]byte, error) {
	err := tar2ext4.Convert(r, w, tar2ext4.ConvertWhiteout, tar2ext4.MaximumDiskSize(dmverity.RecommendedVHDSizeGB), tar2ext4.AppendDMVerity)
	if err != nil {
		return nil, err
	}
	if _, err := w.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	size, _, err := tar2ext4.Ext4FileSystemSize(w)
	if err != nil {
		return nil, err
	}
	info, err := dmverity.ReadDMVerityInfo(w.Name(), size)
	if err != nil {
		return nil, err
	}
	var root []byte
	_, err = fmt.Sscanf(info.RootDigest, "%x", &root)
	return root, err
}

func processorTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func with(name string, do func(*os.File) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
