package redistest

import "os"

// Pause stops a process of a test's own, as a machine does that hangs; Resume lets it go on. errors.ErrUnsupported where the system cannot.
func Pause(p *os.Process) error { return pause(p) }

// Resume is the end of Pause.
func Resume(p *os.Process) error { return resume(p) }
