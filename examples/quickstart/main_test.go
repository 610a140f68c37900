package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// small is a run of a size for tests; the counts that it must show are the same.
func small() options {
	return options{rows: 2000, callers: 40, hotRequests: 5, absentRequests: 20, progress: io.Discard}
}

// The counts of the story hold whatever the machine's speed: a hot key costs one read in the whole fleet, absent keys cost none but
// the filter's false positives, and a write is seen by every process.
func TestRunCounts(t *testing.T) {
	o := small()
	r, err := run(t.Context(), o)
	require.NoError(t, err)
	require.Len(t, r.lines, 5)
	hot, absent := o.callers*o.hotRequests, o.callers*o.absentRequests

	for i, want := range []struct {
		with             string
		requests         int
		fewest, mostRead int64
	}{
		{"no cache", hot, int64(hot), int64(hot)},
		{"four caches", hot, 1, 1},
		{"no cache", absent, int64(absent), int64(absent)},
		{"four caches", absent, int64(absent) / 4, int64(absent)},
		{"four caches, filter", absent, 0, int64(absent) / 10}, // 1 in 100 expected, at most four times each
	} {
		got := r.lines[i]
		require.Equal(t, want.with, got.with, "line %d", i)
		require.Equal(t, want.requests, got.requests, "requests of line %d", i)
		require.GreaterOrEqual(t, got.reads, want.fewest, "database reads of line %d", i)
		require.LessOrEqual(t, got.reads, want.mostRead, "database reads of line %d", i)
	}
	require.EqualValues(t, o.rows, r.filterRows)
	require.Len(t, r.seen, processes)
	require.Equal(t, r.oldCents+100, r.newCents)
	require.Positive(t, r.updateReads)
}

// A database file of the user's is built once and kept, and a second run goes on with it.
func TestRunKeepsTheDatabaseFile(t *testing.T) {
	o := small()
	o.databaseFile = filepath.Join(t.TempDir(), "a shop?.db")
	first, err := run(t.Context(), o)
	require.NoError(t, err)
	o.rows = 1 // would show if the table were built again
	second, err := run(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, first.rows, second.rows)
	require.Equal(t, first.newCents, second.oldCents, "price in the file")
}

// A file that is no database, or holds other tables, is refused and left as it was.
func TestRunRefusesAForeignFile(t *testing.T) {
	text := filepath.Join(t.TempDir(), "notes.txt")
	require.NoError(t, os.WriteFile(text, bytes.Repeat([]byte("not a database\n"), 100), 0o600))
	other := filepath.Join(t.TempDir(), "other.db")
	db, err := sql.Open("sqlite", other)
	require.NoError(t, err)
	_, err = db.ExecContext(t.Context(), `CREATE TABLE accounts (id INTEGER)`)
	require.NoError(t, err)
	require.NoError(t, db.Close())

	for _, file := range []string{text, other, t.TempDir()} {
		o := small()
		o.databaseFile = file
		_, err := run(t.Context(), o)
		require.ErrorContains(t, err, file)
	}
}

// A Redis address that nobody listens on is an error that names it.
func TestRunNamesTheServerThatDoesNotAnswer(t *testing.T) {
	o := small()
	o.redisAddr = "127.0.0.1:1"
	_, err := run(t.Context(), o)
	require.ErrorContains(t, err, "-redis 127.0.0.1:1")
}

// A run that is interrupted ends with the error of its context, whatever it was doing, and leaves no temporary file.
func TestRunStopsWhenInterrupted(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	for _, step := range []string{"building the products table", "one hot product, no cache", "absent products, four caches"} {
		ctx, cancel := context.WithCancel(t.Context())
		o := small()
		o.progress = writerFunc(func(p []byte) (int, error) {
			if bytes.HasPrefix(p, []byte(step)) {
				cancel()
			}
			return len(p), nil
		})
		_, err := run(ctx, o)
		require.ErrorIs(t, err, context.Canceled, step)
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, left, step)
		cancel()
	}
}

// Flags: what is given is taken, what is wrong is told.
func TestParseFlags(t *testing.T) {
	var told bytes.Buffer
	o, err := parseFlags([]string{"-redis", "127.0.0.1:6379", "-dsn", "x.db"}, &told)
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:6379", o.redisAddr)
	require.Equal(t, "x.db", o.databaseFile)

	_, err = parseFlags([]string{"-h"}, &told)
	require.True(t, errors.Is(err, flag.ErrHelp))
	for _, args := range [][]string{{"-redsi", "x"}, {"products.db"}} {
		told.Reset()
		_, err = parseFlags(args, &told)
		require.Error(t, err, args)
		require.Contains(t, told.String(), err.Error())
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
