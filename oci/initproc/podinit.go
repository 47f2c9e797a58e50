package initproc

func (s *setup) podInit() error { return text("pod init") }
