package bloom

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
)

// What is due beside the scan is looked at every tendEvery, the clock every clockEvery rows. Chosen; not tuned.
const (
	tendEvery  = 5 * time.Second
	clockEvery = 64
	burst      = 100 * time.Millisecond // how far a limited scan may make up for its own slowness
	nap        = 10 * time.Millisecond  // a limited scan pauses when it is this far ahead, not at each row
)

const (
	// checkpointEvery is how often a build stores how far it came: what a crash costs. Chosen; not tuned.
	checkpointEvery = 30 * time.Second
	// checkpointShare bounds the time that goes into it: after each it is let be for so many times as long as it took. Chosen; not tuned.
	checkpointShare = 20
)

// scan reads a source to its end, or from where an earlier build was cut off.
type scan struct {
	options BuildOptions
	rows    iter.Seq2[string, error] // or
	pages   Pages
	into    build

	started time.Time
	count   uint64    // rows done, those that were resumed included
	tended  time.Time // when what is due was last done
	due     time.Time // when the next row may be read
	sample  sample    // of the rows that were read here
	telling

	resumed uint64    // rows that an earlier build had done
	place   string    // in the source, behind what was read; of pages
	kept    uint64    // rows that the checkpoint has
	keep    time.Time // when the next may be stored
}

// build is what a scan's rows go into.
type build interface {
	// resume takes over what an earlier build has left, if it can be gone on with: then it returns that.
	resume(ctx context.Context) (*checkpoint, error)
	// begin begins anew, whatever resume took over.
	begin(ctx context.Context) error
	add(ctx context.Context, key string) error
	// tend does what is due every tendEvery.
	tend(ctx context.Context) error
	// save stores how far the scan came. Where it could not be stored, more is read again should the build be cut off: nothing else. An error
	// ends the build.
	save(ctx context.Context) (stored bool, err error)
	// finish has everyone believe the filter.
	finish(ctx context.Context) error
}

// run builds.
func (s *scan) run(ctx context.Context, b build) error {
	s.into, s.started = b, time.Now()
	var left *checkpoint
	var err error
	if s.resumable() {
		left, err = b.resume(ctx)
	}
	if err == nil {
		err = s.read(ctx, left)
	}
	if left != nil && errors.Is(err, ErrPlace) {
		err = s.read(ctx, nil)
	}
	if err == nil {
		err = b.finish(ctx)
	}
	return err
}

func (s *scan) resumable() bool { return s.pages != nil && s.options.Checkpoint >= 0 }

func (s *scan) report() BuildReport {
	return BuildReport{Rows: s.count, Resumed: s.resumed, Took: time.Since(s.started)}
}

// read reads the source to its end: from its beginning, unless there is a checkpoint.
func (s *scan) read(ctx context.Context, from *checkpoint) error {
	s.sample = nil
	if from != nil {
		s.count, s.resumed, s.kept, s.place = from.rows, from.rows, from.rows, from.place
	} else {
		s.count, s.resumed, s.kept, s.place = 0, 0, 0, ""
		if err := s.into.begin(ctx); err != nil {
			return err
		}
	}
	s.tended, s.due = s.started, s.started
	now := time.Now()
	s.telling = telling{from: now, told: now, reported: now, thenAt: s.resumed}
	if err := ctx.Err(); err != nil {
		return err
	}
	read := s.readRows
	if s.pages != nil {
		read = s.readPages
	}
	if err := read(ctx); err != nil {
		return err
	}
	s.tell(time.Now(), true)
	return ctx.Err()
}

func (s *scan) readRows(ctx context.Context) error {
	for key, err := range s.rows {
		if err != nil {
			return s.failed(err)
		}
		if err := s.row(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) readPages(ctx context.Context) error {
	for {
		keys, next, err := s.pages.after(ctx, s.place)
		if err != nil {
			return s.failed(err)
		}
		for _, key := range keys {
			if err := s.row(ctx, key); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		s.place = next
		if err := s.checkpoint(ctx); err != nil {
			return s.failed(err)
		}
	}
}

func (s *scan) failed(err error) error {
	return fmt.Errorf("bloom: building, after %d rows: %w", s.count, err)
}

func (s *scan) row(ctx context.Context, key string) error {
	if err := s.into.add(ctx, key); err != nil {
		return s.failed(err)
	}
	s.count++
	s.sample.add(key, s.count-s.resumed)
	return s.between(ctx)
}

// between does what is due between two rows.
func (s *scan) between(ctx context.Context) error {
	limited := s.options.RowsPerSecond > 0
	told := s.options.Progress != nil || s.options.Report != nil
	if !limited && s.count%clockEvery != 0 && !told {
		return nil
	}
	now := time.Now()
	if told {
		s.tell(now, false)
	}
	if now.Sub(s.tended) >= tendEvery {
		s.tended = now
		if err := s.into.tend(ctx); err != nil {
			return err
		}
	}
	if limited {
		return s.pace(ctx, now)
	}
	return ctx.Err()
}

// pace waits until the next row may be read.
func (s *scan) pace(ctx context.Context, now time.Time) error {
	if earliest := now.Add(-burst); s.due.Before(earliest) {
		s.due = earliest
	}
	s.due = s.due.Add(time.Second / time.Duration(s.options.RowsPerSecond))
	ahead := s.due.Sub(now)
	if ahead < nap {
		return ctx.Err()
	}
	timer := time.NewTimer(ahead)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// checkpoint stores how far the scan came, if that is due.
func (s *scan) checkpoint(ctx context.Context) error {
	every := s.options.Checkpoint
	if every == 0 {
		every = checkpointEvery
	}
	began := time.Now()
	if s.keep.IsZero() {
		s.keep = s.started.Add(every)
	}
	if !s.resumable() || began.Before(s.keep) {
		return nil
	}
	stored, err := s.into.save(ctx)
	if stored {
		s.kept = s.count
	}
	s.keep = time.Now().Add(max(every, checkpointShare*time.Since(began)))
	return err
}

// counted looks whether there were about as many rows as expected.
func (s *scan) counted() error {
	if n := float64(s.options.Expected); n > 0 && (float64(s.count) < 0.9*n || float64(s.count) > 1.5*n) {
		return fmt.Errorf("%w: %d rows, expected %d", ErrImplausible, s.count, s.options.Expected)
	}
	return nil
}

// reach is how far before the scan announcements are read.
func (o BuildOptions) reach() time.Duration { return max(Reach, o.ReplicaLag) }

// check says what is wrong with the arguments of Build.
func (o BuildOptions) check(rows, store bool) error {
	if !rows || o.RowsPerSecond < 0 || o.ReplicaLag < 0 || o.ReplicaLag > Reach && !store {
		return fmt.Errorf("bloom: Build needs rows (given: %t), RowsPerSecond of at least 0 (is %d), ReplicaLag of at least 0 (is %v), and without a store of at most %v",
			rows, o.RowsPerSecond, o.ReplicaLag, Reach)
	}
	return nil
}
