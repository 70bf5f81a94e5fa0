package editor

// countBelowPortable is countBelow in Go, for every machine.
func countBelowPortable(limit uint64, logp []float32) int {
	var n uint64
	for len(logp) >= 8 {
		n += below(limit, logp[0]) + below(limit, logp[1]) + below(limit, logp[2]) + below(limit, logp[3]) +
			below(limit, logp[4]) + below(limit, logp[5]) + below(limit, logp[6]) + below(limit, logp[7])
		logp = logp[8:]
	}
	for _, v := range logp {
		n += below(limit, v)
	}
	return int(n)
}
