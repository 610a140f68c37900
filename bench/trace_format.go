package bench

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// The forms of public traces, told by the file's name and, for the width of binary keys, by its path:
//
//	*.lis, *.lis.zst      ARC: lines `start count ignored number`: count pages from start on
//	*.trace.gz            LIRS: a number a line; other lines than numbers are marks and mean nothing
//	*.trace.xz            cache2k: big-endian numbers of 32 bits
//	*.gz, *.xz            with "scarab" or "corda" in the path: big-endian numbers of 64 bits

// traceMost is how many requests of a trace are read. That of the reference measurements.
const traceMost = 1_000_000

// trace is the first requests of a trace.
type trace struct {
	name string
	keys []int64
}

// traceForm reads requests until the end or until yield returns false.
type traceForm func(r *bufio.Reader, yield func(key int64) bool) error

// formOf tells the form of a file; nil: it is no trace.
func formOf(path string) traceForm {
	name := strings.ToLower(filepath.ToSlash(path))
	zipped := strings.HasSuffix(name, ".gz") || strings.HasSuffix(name, ".xz")
	switch {
	case strings.HasSuffix(name, ".lis"), strings.HasSuffix(name, ".lis.zst"):
		return arcLines
	case zipped && (strings.Contains(name, "scarab") || strings.Contains(name, "corda")):
		return bigEndian(8)
	case strings.HasSuffix(name, ".trace.gz"):
		return lirsLines
	case strings.HasSuffix(name, ".trace.xz"):
		return bigEndian(4)
	}
	return nil
}

// readTraces reads the traces below dir, in the order of their names. Files of other kinds are passed over; a trace that cannot be read, and
// a folder without any, is an error.
func readTraces(dir string) (traces []trace, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		below, err := filepath.Rel(dir, path)
		if err != nil || formOf(below) == nil {
			return err
		}
		t, err := readTrace(path, formOf(below), traceMost)
		if err != nil {
			return fmt.Errorf("%s: %w", below, err)
		}
		traces = append(traces, t)
		return nil
	})
	if err == nil && len(traces) == 0 {
		err = fmt.Errorf("no traces below %s", dir)
	}
	slices.SortStableFunc(traces, func(a, b trace) int { return strings.Compare(a.name, b.name) })
	return traces, err
}

// readTrace reads the first requests of a file, at most so many: the rest is not unpacked.
func readTrace(path string, form traceForm, most int) (trace, error) {
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	t := trace{name: name}
	f, err := os.Open(path)
	if err != nil {
		return t, err
	}
	defer f.Close() //nolint:errcheck // read only
	r, stop, err := unpack(f, filepath.Ext(path))
	if err != nil {
		return t, err
	}
	defer stop()
	err = form(bufio.NewReaderSize(r, 1<<16), func(key int64) bool {
		t.keys = append(t.keys, key)
		return len(t.keys) < most
	})
	if err == nil && len(t.keys) == 0 {
		err = errors.New("no requests")
	}
	return t, err
}

// unpack undoes the compression that the file's ending names.
func unpack(r io.Reader, ending string) (io.Reader, func(), error) {
	r = bufio.NewReader(r)
	switch strings.ToLower(ending) {
	case ".gz":
		z, err := gzip.NewReader(r)
		return z, func() {}, err
	case ".xz":
		z, err := xz.NewReader(r)
		return z, func() {}, err
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return r, func() {}, nil
}

// eachLine calls f for every line until it returns false or an error.
func eachLine(r *bufio.Reader, f func(line string) (bool, error)) error {
	for lines := bufio.NewScanner(r); ; {
		if !lines.Scan() {
			return lines.Err()
		}
		if more, err := f(strings.TrimSpace(lines.Text())); !more || err != nil {
			return err
		}
	}
}

func arcLines(r *bufio.Reader, yield func(int64) bool) error {
	return eachLine(r, func(line string) (bool, error) {
		if line == "" {
			return true, nil
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			return false, fmt.Errorf("not a line of an ARC trace: %q", line)
		}
		start, err := strconv.ParseInt(fields[0], 10, 64)
		count, err2 := strconv.ParseInt(fields[1], 10, 32)
		if err = errors.Join(err, err2); err != nil {
			return false, err
		}
		for k := start; k < start+count; k++ {
			if !yield(k) {
				return false, nil
			}
		}
		return true, nil
	})
}

func lirsLines(r *bufio.Reader, yield func(int64) bool) error {
	return eachLine(r, func(line string) (bool, error) {
		key, err := strconv.ParseInt(line, 10, 64)
		if err != nil {
			return true, nil //nolint:nilerr // a mark
		}
		return yield(key), nil
	})
}

func bigEndian(width int) traceForm {
	return func(r *bufio.Reader, yield func(int64) bool) error {
		var word [8]byte
		for {
			switch _, err := io.ReadFull(r, word[8-width:]); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return err
			}
			if !yield(int64(binary.BigEndian.Uint64(word[:]))) { //nolint:gosec // only its identity counts
				return nil
			}
		}
	}
}
